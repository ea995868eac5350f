// State timelines and heat maps: Grafana exports no component for them. Plot, axes, scales, units, colours and legend are
// Grafana's; only the boxes are drawn here.

import {
  DataFrame, Field, FieldType, GrafanaTheme2, ThresholdsMode, fieldColorModeRegistry, formattedValueToString, getFieldDisplayName, getValueFormat,
} from '@grafana/data';
import { AxisPlacement, LegendDisplayMode, ScaleDirection, ScaleOrientation, UPlotChart, UPlotConfigBuilder, VizLayout, VizLegend, measureText, useTheme2 } from '@grafana/ui';
import type { Source } from './frames';

interface Box { row: number; from: number; to: number; color: string; text?: string }
interface Boxes { boxes: Box[]; names: string[]; onEdges?: boolean; fill: number; gap: number }
interface Size { width: number; height: number }

function numbersOf(frame: DataFrame) {
  const time = frame.fields.find(({ type }) => type === FieldType.time)!;
  return { time, value: frame.fields.find(({ type }) => type === FieldType.number)! };
}

/** Boxes in rows, the first on top, on Grafana's plot. ``onEdges``: names stand at the upper edge of their row. */
function Plot({ boxes, names, onEdges, fill, gap, source, width, height }: Boxes & Size & { source: Source }) {
  const theme = useTheme2();
  const builder = new UPlotConfigBuilder('utc');
  const rows = names.length;
  const middle = onEdges ? 0 : 0.5;
  builder.addScale({
    scaleKey: 'x', isTime: true, orientation: ScaleOrientation.Horizontal, direction: ScaleDirection.Right,
    range: () => [source.from * 1000, source.to * 1000],
  });
  builder.addScale({ scaleKey: 'y', orientation: ScaleOrientation.Vertical, direction: ScaleDirection.Down, range: () => [0, rows] });
  builder.addAxis({ scaleKey: 'x', isTime: true, placement: AxisPlacement.Bottom, timeZone: 'utc', theme, grid: { show: true } });
  const every = Math.ceil((rows * 16) / height);
  builder.addAxis({
    scaleKey: 'y', placement: AxisPlacement.Left, theme, grid: { show: false }, ticks: { show: false },
    size: Math.max(...names.map((name) => measureText(name, 12).width)) + 20,
    splits: names.map((_, row) => row + middle), values: names.map((name, row) => (row % every ? '' : name)),
  });
  builder.addSeries({ scaleKey: 'y', theme, pathBuilder: () => null, pointsBuilder: () => false, show: true } as any);
  builder.addHook('draw', (plot) => {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    ctx.font = `${12 * devicePixelRatio}px ${theme.typography.fontFamily}`;
    ctx.textAlign = 'left';
    ctx.textBaseline = 'middle';
    for (const { row, from, to, color, text } of boxes) {
      const x = plot.valToPos(from, 'x', true);
      const w = Math.max(1, plot.valToPos(to, 'x', true) - x - gap);
      const top = plot.valToPos(row, 'y', true);
      const whole = plot.valToPos(row + 1, 'y', true) - top;
      const h = Math.max(whole * fill, whole - 12);
      ctx.globalAlpha = text === undefined ? 1 : 0.85;
      ctx.fillStyle = color;
      ctx.fillRect(x, top + (whole - h) / 2, w, h - (text === undefined ? gap : 0));
      if (text && ctx.measureText(text).width + 8 < w) {
        ctx.globalAlpha = 1;
        ctx.fillStyle = theme.colors.getContrastText(color);
        ctx.fillText(text, Math.max(x, bbox.left) + 4, top + whole / 2);
      }
    }
    ctx.restore();
  });
  const empty = [[source.from * 1000, source.to * 1000], [0, 0]] as any;
  builder.setPrepData(() => empty);
  return <UPlotChart config={builder} data={empty} width={width} height={height} />;
}

/** Each series a row; equal neighbours are one box; a missing sample is a hole. */
export function States({ frames, source, width, height }: { frames: DataFrame[]; source: Source } & Size) {
  const step = source.step * 1000;
  const boxes: Box[] = [];
  const legend = new Map<string, string>();
  frames.forEach((frame, row) => {
    const { time, value } = numbersOf(frame);
    let last: (Box & { value: number }) | undefined;
    value.values.forEach((number, at) => {
      if (number === null) {
        return;
      }
      const from = time.values[at];
      if (last && last.value === number && from <= last.to) {
        last.to = from + step;
        return;
      }
      const { text, color = '#888' } = value.display!(number);
      legend.set(text, color);
      last = { row, from, to: from + step, value: number, text, color };
      boxes.push(last);
    });
  });
  const items = [...legend].map(([label, color]) => ({ label, color, yAxis: 1 }));
  return (
    <VizLayout
      width={width} height={height}
      legend={<VizLayout.Legend placement="bottom"><VizLegend items={items} displayMode={LegendDisplayMode.List} placement="bottom" /></VizLayout.Legend>}
    >
      {(w: number, h: number) => (
        <Plot boxes={boxes} names={frames.map((frame) => getFieldDisplayName(numbersOf(frame).value, frame, frames))} fill={0.8} gap={0}
          source={source} width={w} height={h} />
      )}
    </VizLayout>
  );
}

function upperEdge(frame: DataFrame): number {
  const { le } = numbersOf(frame).value.labels ?? {};
  return le === '+Inf' ? Infinity : Number(le);
}

/** The buckets of a histogram over time: Prometheus counts from below, so each bucket is less the one under it. */
export function Heat({ frames, source, options, width, height }: { frames: DataFrame[]; source: Source; options: any } & Size) {
  const theme = useTheme2();
  const sorted = [...frames].sort((a, b) => upperEdge(b) - upperEdge(a));
  const counts = sorted.map((frame) => {
    const { time, value } = numbersOf(frame);
    return new Map<number, number>(time.values.map((at: number, i: number) => [at, value.values[i] ?? 0]));
  });
  const cells = counts.flatMap((bucket, row) =>
    [...bucket].map(([from, count]) => ({ row, from, count: count - (counts[row + 1]?.get(from) ?? 0) }))
  ).filter(({ count }) => count > (options.filterValues?.le ?? 0));
  const most = Math.max(...cells.map(({ count }) => count));
  const paint = painter(options.color, theme);
  const format = getValueFormat(options.yAxis?.unit ?? 'short');
  return (
    <VizLayout width={width} height={height} legend={<VizLayout.Legend placement="bottom"><Scale most={most} paint={paint} /></VizLayout.Legend>}>
      {(w: number, h: number) => (
        <Plot
          boxes={cells.map(({ row, from, count }) => ({ row, from: from - source.step * 1000, to: from, color: paint(count / most) }))}
          names={sorted.map((frame) => (upperEdge(frame) === Infinity ? '+Inf' : formattedValueToString(format(upperEdge(frame)))))}
          onEdges fill={1} gap={options.cellGap ?? 1} source={source} width={w} height={h}
        />
      )}
    </VizLayout>
  );
}

type Paint = (share: number) => string;

function painter({ scheme = 'Viridis', scale = 'linear', exponent = 0.5 }: any, theme: GrafanaTheme2): Paint {
  const field = { name: '', type: FieldType.number, values: [], config: { thresholds: { mode: ThresholdsMode.Percentage, steps: [] } } } as Field;
  const calculate = fieldColorModeRegistry.get(`continuous-${scheme.toLowerCase()}`).getCalculator(field, theme);
  return (share) => calculate(0, scale === 'exponential' ? share ** exponent : share);
}

function Scale({ most, paint }: { most: number; paint: Paint }) {
  const theme = useTheme2();
  const stops = Array.from({ length: 11 }, (_, tenth) => paint(tenth / 10)).join(', ');
  return (
    <div style={{ ...theme.typography.bodySmall, display: 'flex', alignItems: 'center', gap: 8, height: 20, padding: '0 8px' }}>
      0 <span style={{ width: 160, height: 8, background: `linear-gradient(to right, ${stops})` }} /> {most.toPrecision(3)}
    </div>
  );
}
