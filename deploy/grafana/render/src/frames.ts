// From a panel of a dashboard and Prometheus' raw answers to the data frames that Grafana's components draw.

import {
  DataFrame, Field, FieldConfigOptionsRegistry, FieldConfigSource, FieldType, GrafanaTheme2, applyFieldOverrides,
  cacheFieldDisplayNames, createDataFrame, identityOverrideProcessor, renderLegendFormat, standardTransformers, standardTransformersRegistry,
  transformDataFrame,
} from '@grafana/data';
import { lastValueFrom } from 'rxjs';

type Labels = Record<string, string>;
interface Series { metric: Labels; values: Array<[number, string]> }
interface Target { refId: string; expr: string; legendFormat?: string; format?: string; hide?: boolean }

export interface Panel {
  id: number;
  type: string;
  title?: string;
  description?: string;
  gridPos: { x: number; y: number; w: number; h: number };
  targets?: Target[];
  fieldConfig?: FieldConfigSource;
  options?: any;
  transformations?: any[];
  transparent?: boolean;
  collapsed?: boolean;
  panels?: Panel[];
}

/** What Prometheus answered one target of a panel, over the whole time. */
interface Answer { dashboard: string; panel: number; ref_id: string; result: Series[] }

/** What the driver in tests/deploy/dashboards writes. ``picked``: by dashboard, its variables as a person reads them. */
export interface Results {
  acts: Array<{ name: string; start_s: number; end_s: number }>;
  step_s: number;
  answers: Answer[];
  picked?: Record<string, Record<string, string>>;
}

export interface Dashboard {
  title: string;
  uid: string;
  panels: Panel[];
  templating?: { list: Array<{ name: string; label?: string; type: string; hide?: number }> };
}

/** What one dashboard is drawn from. Times in seconds. */
export interface Source { answers: Map<string, Series[]>; from: number; to: number; step: number; variables: Record<string, string> }

/** A dashboard's part of the results: from the first act, as servers start before, up to a time with traffic in the last. */
export function sourceOf({ uid }: Dashboard, { acts, step_s, answers, picked }: Results): Source {
  const last = acts[acts.length - 1];
  const [from, to] = [acts[0].start_s, last.start_s + 0.75 * (last.end_s - last.start_s)];
  const cut = ({ metric, values }: Series) => ({ metric, values: values.filter(([at]) => at >= from && at <= to) });
  const own = answers.filter(({ dashboard }) => dashboard === uid);
  return {
    answers: new Map(own.map(({ panel, ref_id, result }) => [`${panel}/${ref_id}`, result.map(cut)])),
    from, to, step: step_s, variables: picked?.[uid] ?? {},
  };
}

/** Text with the dashboard's variables filled in. */
export function filled(text: string | undefined, variables: Record<string, string>): string {
  return (text ?? '').replace(/\$\{(\w+)(?::\w+)?\}|\$(\w+)/g, (whole, braced, bare) => variables[braced ?? bare] ?? whole);
}

standardTransformersRegistry.setInit(() =>
  // Some are exported under two names.
  [...new Set(Object.values(standardTransformers))].map((transformer) => ({
    id: transformer.id, name: transformer.name, transformation: async () => transformer, imageDark: '', imageLight: '',
  }) as any)
);

/** The frames of a panel: converted, transformed, and with units, thresholds, mappings, colours and overrides applied. */
export async function framesOf(panel: Panel, source: Source, theme: GrafanaTheme2): Promise<DataFrame[]> {
  const targets = (panel.targets ?? []).filter((target) => !target.hide);
  const frames = targets.flatMap((target) => {
    const series = source.answers.get(`${panel.id}/${target.refId}`);
    if (!series) {
      throw new Error(`panel ${panel.id} (${panel.title}): no answer for target ${target.refId}`);
    }
    return target.format === 'table' ? [tableOf(series, target, targets.length)] : graphsOf(series, target, source.step);
  });
  const transformed = await lastValueFrom(transformDataFrame(panel.transformations ?? [], frames));
  const fieldConfig = withDefaults(panel);
  const overridden = applyFieldOverrides({
    data: transformed,
    fieldConfig,
    fieldConfigRegistry: registryOf(fieldConfig),
    replaceVariables: (text) => filled(text, source.variables),
    theme,
    timeZone: 'utc',
  });
  cacheFieldDisplayNames(overridden);
  return overridden;
}

function graphsOf(series: Series[], target: Target, step: number): DataFrame[] {
  return series.map(({ metric, values: raw }) => {
    const values = withGaps(raw, step);
    const { __name__, ...labels } = metric;
    return createDataFrame({
      refId: target.refId,
      fields: [
        { name: 'Time', type: FieldType.time, values: values.map(([s]) => Math.round(s * 1000)) },
        {
          name: 'Value', type: FieldType.number, values: values.map(([, text]) => numberIn(text)), labels,
          config: { displayNameFromDS: legendOf(target, metric) },
        },
      ],
    });
  });
}

/** As Grafana's panel does: where samples are missing, one that is no number, so that no line is drawn across. */
function withGaps(values: Series['values'], step: number): Series['values'] {
  return values.flatMap((sample, at): Series['values'] =>
    at && sample[0] - values[at - 1][0] > 1.5 * step ? [[values[at - 1][0] + step, 'NaN'], sample] : [sample]
  );
}

/** The last values, as an instant query at the end has them. Each label is a column, the metric's name too. */
function tableOf(series: Series[], target: Target, targets: number): DataFrame {
  const end = Math.max(...series.flatMap(({ values }) => values.map(([at]) => at)));
  const rows = series.map(({ metric, values }) => ({ metric, last: values[values.length - 1] })).filter(({ last }) => last?.[0] === end);
  const names = [...new Set(rows.flatMap(({ metric }) => Object.keys(metric)))].sort();
  return createDataFrame({
    refId: target.refId,
    fields: [
      { name: 'Time', type: FieldType.time, values: rows.map(({ last }) => Math.round(last[0] * 1000)) },
      ...names.map((name) => ({ name, type: FieldType.string, values: rows.map(({ metric }) => metric[name] ?? '') })),
      {
        name: targets > 1 ? `Value #${target.refId}` : 'Value', type: FieldType.number,
        values: rows.map(({ last }) => numberIn(last[1])),
      },
    ],
  });
}

function numberIn(text: string): number | null {
  const number = text === '+Inf' ? Infinity : text === '-Inf' ? -Infinity : Number(text);
  // As Grafana's Prometheus data source does: not-a-number is drawn as nothing.
  return Number.isNaN(number) ? null : number;
}

function legendOf({ legendFormat, expr }: Target, metric: Labels): string {
  if (legendFormat && legendFormat !== '__auto') {
    return renderLegendFormat(legendFormat, metric);
  }
  const { __name__ = '', ...labels } = metric;
  const pairs = Object.entries(labels).map(([name, value]) => `${name}="${value}"`).join(', ');
  return pairs ? `${__name__}{${pairs}}` : __name__ || expr;
}

// What Grafana's plugins register as the defaults of their own options.
const CUSTOM: Record<string, object> = {
  timeseries: {
    drawStyle: 'line', lineInterpolation: 'linear', lineWidth: 1, fillOpacity: 0, gradientMode: 'none', spanNulls: false,
    showPoints: 'auto', pointSize: 5, stacking: { mode: 'none', group: 'A' }, axisPlacement: 'auto',
    thresholdsStyle: { mode: 'off' }, scaleDistribution: { type: 'linear' }, barAlignment: 0,
  },
  table: { align: 'auto', cellOptions: { type: 'auto' } },
};

function withDefaults(panel: Panel): FieldConfigSource {
  const { defaults = {}, overrides = [] } = structuredClone(panel.fieldConfig ?? {}) as FieldConfigSource;
  defaults.custom = { ...CUSTOM[panel.type], ...defaults.custom };
  defaults.color ??= { mode: panel.type === 'timeseries' ? 'palette-classic' : 'thresholds' } as any;
  defaults.thresholds ??= { mode: 'absolute', steps: [{ value: null, color: 'green' }, { value: 80, color: 'red' }] } as any;
  const rules = overrides.flatMap((rule) => rule.properties);
  const all = [defaults.thresholds, ...rules.filter(({ id }) => id === 'thresholds').map(({ value }) => value)];
  for (const thresholds of all) {
    // JSON has no infinity: the first step comes as null.
    thresholds.steps[0].value = -Infinity;
  }
  return { defaults, overrides };
}

/** Every option that the panel sets, registered as Grafana's option editors would be: they are taken as they are. */
function registryOf({ defaults, overrides }: FieldConfigSource): FieldConfigOptionsRegistry {
  const ids = new Set<string>([
    ...Object.keys(defaults).filter((name) => name !== 'custom'),
    ...Object.keys(defaults.custom ?? {}).map((name) => `custom.${name}`),
    ...overrides.flatMap((rule) => rule.properties.map(({ id }) => id)),
  ]);
  return new FieldConfigOptionsRegistry(() =>
    [...ids].map((id) => ({
      id, name: id, path: id.replace(/^custom\./, ''), isCustom: id.startsWith('custom.'), settings: {},
      process: identityOverrideProcessor, shouldApply: (field: Field) => field.type !== FieldType.time || id.startsWith('custom.'),
    }) as any)
  );
}
