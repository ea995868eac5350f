// The page: a dashboard's title, variables, row headings and panels on Grafana's grid of 24 columns.

import { DataFrame, createTheme, dateTimeFormat } from '@grafana/data';
import { initPluginTranslations } from '@grafana/i18n';
import { GlobalStyles, Icon, PanelChrome, ThemeContext, ToolbarButton, useTheme2 } from '@grafana/ui';
import { createRoot } from 'react-dom/client';
import { Dashboard, Panel, Results, Source, filled, framesOf, sourceOf } from './frames';
import { Visualization, hasData } from './panels';

// Grafana's own measures, in pixels: a grid row, the gap between panels, the margin of the page.
const ROW = 30;
const GAP = 8;
const MARGIN = 16;

interface Picture { mode?: 'dark' | 'light'; rows?: Array<string | null> }
interface Ready { panel: Panel; frames: DataFrame[] }

function Head({ dashboard, source }: { dashboard: Dashboard; source: Source }) {
  const time = (s: number) => dateTimeFormat(s * 1000, { timeZone: 'utc', format: 'YYYY-MM-DD HH:mm:ss' });
  const shown = (dashboard.templating?.list ?? []).filter(({ name, hide }) => hide !== 2 && source.variables[name]);
  const theme = useTheme2();
  return (
    <div style={{ display: 'flex', alignItems: 'center', gap: 8, height: 56 }}>
      <h1 style={{ ...theme.typography.h3, margin: '0 16px 0 0' }}>{dashboard.title}</h1>
      {shown.map(({ name, label }) => (
        <span key={name} style={{ display: 'flex', alignItems: 'center', gap: 6, color: theme.colors.text.secondary }}>
          {label || name}
          <ToolbarButton variant="canvas" isOpen={false}>{source.variables[name]}</ToolbarButton>
        </span>
      ))}
      <span style={{ flexGrow: 1 }} />
      <ToolbarButton icon="clock-nine" variant="canvas">{`${time(source.from)} to ${time(source.to)}`}</ToolbarButton>
      <span style={{ color: theme.colors.warning.text }}>UTC</span>
    </div>
  );
}

function place({ x, y, w, h }: Panel['gridPos'], width: number) {
  const column = (width + GAP) / 24;
  return { left: x * column, top: y * (ROW + GAP), width: w * column - GAP, height: h * (ROW + GAP) - GAP };
}

function Row({ panel, source }: { panel: Panel; source: Source }) {
  const theme = useTheme2();
  return (
    <div style={{ ...theme.typography.h6, display: 'flex', alignItems: 'center', gap: 4, height: '100%' }}>
      <Icon name={panel.collapsed ? 'angle-right' : 'angle-down'} /> {filled(panel.title, source.variables)}
    </div>
  );
}

function Page({ dashboard, ready, source, width }: { dashboard: Dashboard; ready: Ready[]; source: Source; width: number }) {
  const theme = useTheme2();
  const inner = width - 2 * MARGIN;
  const bottom = Math.max(...ready.map(({ panel }) => panel.gridPos.y + panel.gridPos.h)) * (ROW + GAP);
  return (
    <div id="page" style={{ width, padding: `0 ${MARGIN}px ${GAP}px`, background: theme.colors.background.canvas }}>
      <Head dashboard={dashboard} source={source} />
      <div style={{ position: 'relative', height: bottom }}>
        {ready.map(({ panel, frames }) => {
          const spot = place(panel.gridPos, inner);
          return (
            <div key={panel.id} data-panel={hasData({ panel, frames }) ? panel.type : ''} style={{ position: 'absolute', ...spot }}>
              {panel.type === 'row' ? <Row panel={panel} source={source} /> : (
                <PanelChrome
                  title={filled(panel.title, source.variables)} description={panel.description} width={spot.width} height={spot.height}
                  displayMode={panel.transparent ? 'transparent' : 'default'} padding={panel.type === 'table' ? 'none' : 'md'}
                >
                  {(w, h) => <Visualization panel={panel} frames={frames} source={source} width={w} height={h} />}
                </PanelChrome>
              )}
            </div>
          );
        })}
      </div>
    </div>
  );
}

/** The panels from one row heading up to another, where they are named, moved to the top. */
function between(panels: Panel[], [first, end]: Array<string | null>): Panel[] {
  const top = (title: string | null | undefined, otherwise: number) => {
    const row = panels.find((panel) => panel.type === 'row' && panel.title === title);
    if (title && !row) {
      throw new Error(`there is no row ${title}`);
    }
    return row?.gridPos.y ?? otherwise;
  };
  const [from, to] = [top(first, 0), top(end, Infinity)];
  return panels.filter(({ gridPos: { y } }) => y >= from && y < to)
    .map((panel) => ({ ...panel, gridPos: { ...panel.gridPos, y: panel.gridPos.y - from } }));
}

/** Draw a dashboard; resolves to the titles of panels without data. Rejects when a panel has no answer or cannot be drawn. */
async function draw(dashboard: Dashboard, results: Results, { mode = 'dark', rows = [] }: Picture, width: number) {
  await initPluginTranslations('grafana');
  const theme = createTheme({ colors: { mode } });
  const source = sourceOf(dashboard, results);
  const panels = between(dashboard.panels.flatMap((panel) => [panel, ...(panel.collapsed ? [] : panel.panels ?? [])]), rows);
  const ready = await Promise.all(panels.map(async (panel) => ({ panel, frames: await framesOf(panel, source, theme) })));
  const root = createRoot(document.getElementById('root')!, { onUncaughtError: (error) => { throw error; } });
  const themed = (content: React.ReactNode) => root.render(
    <ThemeContext.Provider value={theme}><GlobalStyles />{content}</ThemeContext.Provider>
  );
  // Widths are measured once with whatever font there is: Grafana's must have come before anything is drawn.
  themed(null);
  await new Promise((done) => setTimeout(done, 100));
  await Promise.all([400, 500].map((weight) => document.fonts.load(`${weight} 12px Inter`)));
  themed(<Page dashboard={dashboard} ready={ready} source={source} width={width} />);
  return ready.filter((one) => !hasData(one)).map(({ panel }) => `${panel.id} ${panel.title}`);
}

Object.assign(window, { draw });
