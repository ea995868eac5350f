// node render.mjs RESULTS.json FOLDER: pictures of the dashboards, drawn by Grafana's own components. RESULTS.json is what
// the driver in tests/deploy/dashboards writes.

import { readFile, writeFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';
import { chromium } from 'playwright-core';
import UPNG from 'upng-js';

// rows: from that row heading on, and up to that one. A page that is longer than two screens makes two pictures.
const PICTURES = [
  { name: 'edge-fleet', dashboard: 'edge-fleet', rows: [null, 'Devices'] },
  { name: 'edge-fleet-devices', dashboard: 'edge-fleet', rows: ['Devices', null] },
  { name: 'one-edge', dashboard: 'one-edge', rows: [null, 'Cloud and link'] },
  { name: 'one-edge-device', dashboard: 'one-edge', rows: ['Cloud and link', null] },
  { name: 'cloud', dashboard: 'cloud' },
  { name: 'cloud-light', dashboard: 'cloud', mode: 'light' },
];
const WIDTH = 1440;
const COLOURS = 256;
const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const json = async (file) => JSON.parse(await readFile(file, 'utf8'));

// The page asks for icons and fonts under an address that leads nowhere: nothing listens there, nothing is fetched.
const ORIGIN = 'http://grafana.invalid';
const INTER = { 'Inter-Regular': 'inter-latin-400-normal', 'Inter-Medium': 'inter-latin-500-normal' };
const FILES = [
  [/^\/public\/build\/img\/(.+)$/, (name) => here(`node_modules/@grafana/ui/dist/public/img/${name}`)],
  [/^\/public\/fonts\/inter\/(Inter-\w+)\.woff2$/, (name) => here(`node_modules/@fontsource/inter/files/${INTER[name]}.woff2`)],
];

async function answer(route) {
  const path = decodeURI(new URL(route.request().url()).pathname);
  if (path === '/') {
    return route.fulfill({ contentType: 'text/html', body: '<!doctype html><meta charset="utf-8"><body style="margin:0"><div id="root">' });
  }
  for (const [pattern, file] of FILES) {
    const match = pattern.exec(path);
    if (match) {
      return route.fulfill({ path: file(match[1]) }).catch(() => route.abort());
    }
  }
  return route.abort();
}

async function bundled() {
  const { outputFiles } = await build({
    entryPoints: [here('src/page.tsx')], bundle: true, write: false, minify: true, format: 'iife', jsx: 'automatic', outdir: '/nowhere',
    define: { 'process.env.NODE_ENV': '"production"' }, loader: { '.svg': 'dataurl', '.png': 'dataurl', '.ttf': 'empty' }, logLevel: 'error',
  });
  return outputFiles;
}

// A table draws only what is in sight. Sizes are observed, and tables and icons come, some time after the rest: the
// picture is taken once it stays the same.
async function settled(page) {
  const { height } = await page.locator('#page').boundingBox();
  await page.setViewportSize({ width: WIDTH, height: Math.ceil(height) });
  await page.waitForLoadState('networkidle');
  await page.waitForFunction(() => [...document.querySelectorAll('[data-panel=table]')].every((panel) => panel.querySelector('[role=gridcell]')));
  let [image, same] = [Buffer.alloc(0), 0];
  for (let tries = 0; tries < 40 && same < 2; tries += 1) {
    await page.waitForTimeout(500);
    const next = await page.locator('#page').screenshot({ animations: 'disabled' });
    [image, same] = [next, next.equals(image) ? same + 1 : 0];
  }
  return image;
}

async function drawn(browser, files, dashboard, results, picture) {
  const page = await browser.newPage({ viewport: { width: WIDTH, height: 900 } });
  const errors = [];
  page.on('pageerror', (error) => errors.push(error.stack));
  await page.route('**/*', answer);
  await page.goto(`${ORIGIN}/`);
  for (const { path, text: content } of files) {
    await (path.endsWith('.css') ? page.addStyleTag({ content }) : page.addScriptTag({ content }));
  }
  const empty = await page.evaluate((args) => window.draw(...args), [dashboard, results, picture, WIDTH]);
  const image = await settled(page);
  await page.close();
  if (errors.length) {
    throw new Error(errors.join('\n'));
  }
  return { empty, image };
}

/** The picture with a palette: a third of the size, and nobody sees a difference. */
function smaller(image) {
  const { width, height, ...rest } = UPNG.decode(image);
  return Buffer.from(UPNG.encode(UPNG.toRGBA8({ width, height, ...rest }), width, height, COLOURS));
}

const [resultsFile, folder] = process.argv.slice(2);
const [results, files] = await Promise.all([json(resultsFile), bundled()]);
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
    '--disable-component-update', '--disable-sync'],
});
try {
  for (const picture of PICTURES) {
    const dashboard = await json(here(`../dashboards/${picture.dashboard}.json`));
    const { empty, image } = await drawn(browser, files, dashboard, results, picture);
    const made = smaller(image);
    await writeFile(`${folder}/${picture.name}.png`, made);
    console.log(`${picture.name}.png ${Math.round(made.length / 1024)} KB${empty.map((panel) => `; no data: ${panel}`).join('')}`);
  }
} finally {
  await browser.close();
}
