// The page: a dashboard's title, variables, row headings and panels on Grafana's grid of 24 columns.

import { DataFrame, createTheme, dateTimeFormat } from '@grafana/data';
import { initPluginTranslations } from '@grafana/i18n';
import { GlobalStyles, Icon, PanelChrome, ThemeContext, ToolbarButton, useTheme2 } from '@grafana/ui';
import { createRoot } from 'react-dom/client';
import { Panel, Results, filled, framesOf } from './frames';
import { Visualization } from './panels';

// Grafana's own measures, in pixels: a grid row, the gap between panels, the margin of the page.
const ROW = 30;
const GAP = 8;
const MARGIN = 16;

interface Dashboard { title: string; panels: Panel[]; templating?: { list: Array<{ name: string; label?: string; type: string; hide?: number }> } }
interface Ready { panel: Panel; frames: DataFrame[] }

function Head({ dashboard, results }: { dashboard: Dashboard; results: Results }) {
  const time = (s: number) => dateTimeFormat(s * 1000, { timeZone: 'utc', format: 'YYYY-MM-DD HH:mm:ss' });
  const shown = (dashboard.templating?.list ?? []).filter(({ name, hide }) => hide !== 2 && results.variables?.[name]);
  const theme = useTheme2();
  return (
    <div style={{ display: 'flex', alignItems: 'center', gap: 8, height: 56 }}>
      <h1 style={{ ...theme.typography.h3, margin: '0 16px 0 0' }}>{dashboard.title}</h1>
      {shown.map(({ name, label }) => (
        <span key={name} style={{ display: 'flex', alignItems: 'center', gap: 6, color: theme.colors.text.secondary }}>
          {label || name}
          <ToolbarButton variant="canvas" isOpen={false}>{results.variables![name]}</ToolbarButton>
        </span>
      ))}
      <span style={{ flexGrow: 1 }} />
      <ToolbarButton icon="clock-nine" variant="canvas">{`${time(results.from)} to ${time(results.to)}`}</ToolbarButton>
      <span style={{ color: theme.colors.warning.text }}>UTC</span>
    </div>
  );
}

function place({ x, y, w, h }: Panel['gridPos'], width: number) {
  const column = (width + GAP) / 24;
  return { left: x * column, top: y * (ROW + GAP), width: w * column - GAP, height: h * (ROW + GAP) - GAP };
}

function Row({ panel, results }: { panel: Panel; results: Results }) {
  const theme = useTheme2();
  return (
    <div style={{ ...theme.typography.h6, display: 'flex', alignItems: 'center', gap: 4, height: '100%' }}>
      <Icon name={panel.collapsed ? 'angle-right' : 'angle-down'} /> {filled(panel.title, results.variables)}
    </div>
  );
}

function Page({ dashboard, ready, results, width }: { dashboard: Dashboard; ready: Ready[]; results: Results; width: number }) {
  const theme = useTheme2();
  const inner = width - 2 * MARGIN;
  const bottom = Math.max(...ready.map(({ panel }) => panel.gridPos.y + panel.gridPos.h)) * (ROW + GAP);
  return (
    <div id="page" style={{ width, padding: `0 ${MARGIN}px ${GAP}px`, background: theme.colors.background.canvas }}>
      <Head dashboard={dashboard} results={results} />
      <div style={{ position: 'relative', height: bottom }}>
        {ready.map(({ panel, frames }) => {
          const spot = place(panel.gridPos, inner);
          return (
            <div key={panel.id} style={{ position: 'absolute', ...spot }}>
              {panel.type === 'row' ? <Row panel={panel} results={results} /> : (
                <PanelChrome
                  title={filled(panel.title, results.variables)} description={panel.description} width={spot.width} height={spot.height}
                  displayMode={panel.transparent ? 'transparent' : 'default'} padding={panel.type === 'table' ? 'none' : 'md'}
                >
                  {(w, h) => <Visualization panel={panel} frames={frames} results={results} width={w} height={h} />}
                </PanelChrome>
              )}
            </div>
          );
        })}
      </div>
    </div>
  );
}

/** Draw a dashboard; resolves when every panel is on the page. Rejects when a panel has no data or cannot be drawn. */
async function draw(dashboard: Dashboard, results: Results, mode: 'dark' | 'light', width: number) {
  await initPluginTranslations('grafana');
  const theme = createTheme({ colors: { mode } });
  const panels = dashboard.panels.flatMap((panel) => [panel, ...(panel.collapsed ? [] : panel.panels ?? [])]);
  const ready = await Promise.all(panels.map(async (panel) => ({ panel, frames: await framesOf(panel, results, theme) })));
  const root = createRoot(document.getElementById('root')!, { onUncaughtError: (error) => { throw error; } });
  const page = () => root.render(
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      <Page dashboard={dashboard} ready={ready} results={results} width={width} />
    </ThemeContext.Provider>
  );
  // Twice: widths are measured with the font, which loads only once something is written in it.
  page();
  await new Promise((done) => setTimeout(done, 300));
  await document.fonts.ready;
  root.render(null);
  await new Promise((done) => setTimeout(done, 50));
  page();
}

Object.assign(window, { draw });
