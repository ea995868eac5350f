// One component for every type of panel that the dashboards use, each around Grafana's own.

import {
  DataFrame, FieldType, GrafanaTheme2, VizOrientation, dateTime, getDisplayValueAlignmentFactors, getFieldDisplayValues, renderMarkdown,
} from '@grafana/data';
import { BarGauge, BigValue, TimeSeries, VizRepeater, useTheme2 } from '@grafana/ui';
import { TableNG } from '@grafana/ui/unstable';
import { useMemo } from 'react';
import { Heat, States } from './boxes';
import { Panel, Source, filled } from './frames';

interface Drawn { panel: Panel; frames: DataFrame[]; source: Source; width: number; height: number }

function rangeOf({ from, to }: Source) {
  const range = { from: dateTime(from * 1000), to: dateTime(to * 1000) };
  return { ...range, raw: range };
}

function Graph({ panel, frames, source, width, height }: Drawn) {
  // Kept: with a new one the plot would be made again at every turn.
  const legend = useMemo(() => ({ showLegend: true, displayMode: 'list', placement: 'bottom', calcs: [], ...panel.options?.legend }), [panel]);
  return (
    <TimeSeries
      frames={frames} structureRev={1} timeRange={rangeOf(source)} timeZone="utc" width={width} height={height}
      legend={legend} options={panel.options}
    />
  );
}

function displayValues({ panel, frames, source }: Drawn, theme: GrafanaTheme2, sparkline: boolean) {
  const range = rangeOf(source);
  const values = getFieldDisplayValues({
    fieldConfig: panel.fieldConfig!, reduceOptions: { calcs: ['lastNotNull'], ...panel.options?.reduceOptions },
    replaceVariables: (text) => filled(text, source.variables), theme, data: frames, sparkline, timeZone: 'utc',
  });
  for (const value of values) {
    if (value.sparkline) {
      value.sparkline.timeRange = range;
    }
  }
  return values;
}

function Stat(drawn: Drawn) {
  const theme = useTheme2();
  const { frames, width, height } = drawn;
  const options = {
    graphMode: 'area', colorMode: 'value', justifyMode: 'auto', textMode: 'auto', orientation: 'auto', ...drawn.panel.options,
  };
  return (
    <VizRepeater
      getValues={() => displayValues(drawn, theme, options.graphMode !== 'none')}
      getAlignmentFactors={getDisplayValueAlignmentFactors}
      renderValue={({ value, count, ...size }) => (
        <BigValue
          {...size} value={value.display} sparkline={value.sparkline} count={count} theme={theme} colorMode={options.colorMode}
          graphMode={options.graphMode} justifyMode={options.justifyMode} textMode={options.textMode} text={options.text}
          disableWideLayout={options.wideLayout === false}
        />
      )}
      width={width} height={height} source={frames} itemSpacing={3} renderCounter={0} autoGrid
      orientation={options.orientation as VizOrientation}
    />
  );
}

function Bars(drawn: Drawn) {
  const theme = useTheme2();
  const { frames, width, height } = drawn;
  const options = {
    displayMode: 'gradient', orientation: 'auto', showUnfilled: true, valueMode: 'color', namePlacement: 'auto',
    ...drawn.panel.options,
  };
  const orientation = options.orientation === 'auto' && height > width ? 'horizontal' : options.orientation;
  return (
    <VizRepeater
      getValues={() => displayValues(drawn, theme, false)}
      getAlignmentFactors={getDisplayValueAlignmentFactors}
      renderValue={({ value, count, ...size }) => (
        <BarGauge
          {...size} value={value.display} field={value.field} display={value.view?.getFieldDisplayProcessor(value.colIndex!)}
          theme={theme} displayMode={options.displayMode} showUnfilled={options.showUnfilled} text={options.text}
          valueDisplayMode={options.valueMode} namePlacement={options.namePlacement} itemSpacing={8}
        />
      )}
      width={width} height={height} source={frames} itemSpacing={10} renderCounter={0} minVizHeight={16} minVizWidth={8}
      maxVizHeight={options.maxVizHeight} orientation={orientation as VizOrientation}
    />
  );
}

function Rows({ panel, frames, source, width, height }: Drawn) {
  const { sortBy, cellHeight = 'sm', showHeader = true } = panel.options ?? {};
  return (
    <TableNG
      data={frames[0]} width={width} height={height} noHeader={!showHeader} sortBy={sortBy} cellHeight={cellHeight}
      timeRange={rangeOf(source)} structureRev={1} fieldConfig={panel.fieldConfig} enableVirtualization={false} transparent
    />
  );
}

function Words({ panel, source }: Drawn) {
  return <div style={{ padding: 8 }} className="markdown-html" dangerouslySetInnerHTML={{ __html: renderMarkdown(filled(panel.options?.content, source.variables)) }} />;
}

const DRAW: Record<string, (drawn: Drawn) => React.JSX.Element> = {
  timeseries: Graph, stat: Stat, bargauge: Bars, table: Rows, text: Words,
  'state-timeline': States, heatmap: ({ panel, ...drawn }) => <Heat {...drawn} options={panel.options} />,
};

/** The inside of a panel. Throws for a type that nothing here can draw: a picture with a hole would be a lie. */
export function Visualization(drawn: Drawn) {
  const Draw = DRAW[drawn.panel.type];
  if (!Draw) {
    throw new Error(`panel ${drawn.panel.id}: nothing here draws the type ${drawn.panel.type}`);
  }
  return hasData(drawn) ? <Draw {...drawn} /> : <Nothing {...drawn} />;
}

/** Whether there is a value to draw. Text needs none, and a stat says itself what it shows then. */
export function hasData({ panel, frames }: Pick<Drawn, 'panel' | 'frames'>): boolean {
  return ['text', 'stat', 'row'].includes(panel.type) || frames.some((frame) => frame.fields.some(
    ({ type, values }) => type === FieldType.number && values.some((value) => value !== null)
  ));
}

function Nothing({ panel, height }: Drawn) {
  const theme = useTheme2();
  return (
    <div style={{ ...theme.typography.body, color: theme.colors.text.secondary, height, display: 'grid', placeContent: 'center' }}>
      {panel.fieldConfig?.defaults.noValue ?? 'No data'}
    </div>
  );
}
