// node render.mjs DASHBOARD.json RESULTS.json PICTURE.png [dark|light]: a picture of a dashboard, by Grafana's own components.

import { readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';
import { chromium } from 'playwright-core';

const WIDTH = 1440;
const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const [dashboardFile, resultsFile, picture, mode = 'dark'] = process.argv.slice(2);
const [dashboard, results] = await Promise.all([dashboardFile, resultsFile].map(async (file) => JSON.parse(await readFile(file, 'utf8'))));

const bundle = await build({
  entryPoints: [here('src/page.tsx')], bundle: true, write: false, minify: true, format: 'iife', jsx: 'automatic', target: 'chrome120',
  define: { 'process.env.NODE_ENV': '"production"' }, loader: { '.svg': 'dataurl', '.png': 'dataurl', '.ttf': 'empty' }, logLevel: 'error',
  outdir: '/nowhere',
});

// The page asks for these under an address that leads nowhere: nothing listens, nothing is fetched.
const ORIGIN = 'http://grafana.invalid';
const INTER = { 'Inter-Regular': 'inter-latin-400-normal', 'Inter-Medium': 'inter-latin-500-normal' };
const FILES = [
  [/^\/public\/build\/img\/(.+)$/, ([, name]) => here(`node_modules/@grafana/ui/dist/public/img/${name}`)],
  [/^\/public\/fonts\/inter\/(Inter-\w+)\.woff2$/, ([, name]) => here(`node_modules/@fontsource/inter/files/${INTER[name]}.woff2`)],
];

async function answer(route) {
  const path = decodeURI(new URL(route.request().url()).pathname);
  if (path === '/') {
    return route.fulfill({ contentType: 'text/html', body: '<!doctype html><meta charset="utf-8"><body style="margin:0"><div id="root">' });
  }
  for (const [pattern, file] of FILES) {
    const match = pattern.exec(path);
    if (match) {
      return route.fulfill({ path: file(match) }).catch(() => route.abort());
    }
  }
  return route.abort();
}

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
    '--disable-component-update', '--disable-sync'],
});
try {
  const page = await browser.newPage({ viewport: { width: WIDTH, height: 900 } });
  const errors = [];
  page.on('pageerror', (error) => errors.push(String(error.stack ?? error)));
  if (process.env.DEBUG) {
    page.on('console', (message) => console.error(message.text()));
    page.on('requestfailed', (request) => console.error('failed', request.url()));
  }
  await page.route('**/*', answer);
  await page.goto(`${ORIGIN}/`);
  for (const file of bundle.outputFiles) {
    await (file.path.endsWith('.css') ? page.addStyleTag({ content: file.text }) : page.addScriptTag({ content: file.text }));
  }
  const empty = await page.evaluate((args) => window.draw(...args), [dashboard, results, mode, WIDTH]);
  for (const panel of empty) {
    console.error(`no data: ${dashboard.title}: ${panel}`);
  }
  await page.waitForTimeout(1500);
  if (errors.length) {
    throw new Error(errors.join('\n'));
  }
  await page.locator('#page').screenshot({ path: picture, animations: 'disabled' });
} finally {
  await browser.close();
}
