// Makes the pictures in docs/pictures on demand: the console while no consumer records orders, and some time after a
// consumer runs again.
'use strict';

const { join } = require('node:path');
const { after, before, test } = require('node:test');

const { launch, openConsole } = require('./browser');
const platform = require('./platform');

const { ask, eventually } = platform;
const FOLDER = join(__dirname, '..', '..', 'docs', 'pictures');

const MOVIES = [
  ['Metropolis', 'A city above, and those who keep it running below'],
  ['The Third Man', 'Vienna, a zither, and a friend who is not where he is buried'],
  ['Playtime', 'Monsieur Hulot has an appointment in a building made of glass'],
  ['Solaris', 'An ocean that answers, though nobody has asked it aloud'],
  ['Alien', 'In space no one can hear you scream'],
];

let browser;

before(async () => { browser = await launch(); });
after(() => browser?.close());

const pause = (ms) => new Promise((done) => setTimeout(done, ms));

/** Places orders for some seconds; every run places equal ones. */
async function placeOrders(seconds) {
  const until = Date.now() + seconds * 1000;
  for (let number = 0; Date.now() < until; number += 1) {
    const cents = String((number * 37) % 100).padStart(2, '0');
    await ask('POST', '/api/billing', { user_id: String(20 + (number % 7)), number_of_items: 1 + (number % 4), total_amount: `${12 + (number % 30)}.${cents}` });
    await pause(600 + 500 * Math.sin(number / 5));
  }
}

test('the pictures', { timeout: 280_000 }, async () => {
  await ask('DELETE', '/api/movies');
  for (const [title, description] of MOVIES) await ask('POST', '/api/movies', { title, description });
  await platform.local('psql', 'billing_db', '-c', 'TRUNCATE orders RESTART IDENTITY');
  const pages = {};
  for (const [name, options] of Object.entries({
    light: { colorScheme: 'light', viewport: { width: 1200, height: 860 } },
    dark: { colorScheme: 'dark', viewport: { width: 1200, height: 860 } },
  })) {
    pages[name] = await openConsole(browser, platform.url, options);
    // Only the times of the orders differ from run to run.
    await pages[name].page.route('**/api/orders?*', async (route) => {
      const response = await route.fetch();
      const orders = await response.json();
      for (const order of orders) order.created_at = new Date(Date.UTC(2026, 0, 2, 10, 0, order.id)).toISOString();
      await route.fulfill({ response, json: orders });
    });
    await pages[name].page.reload();
  }
  const picture = (name) => pages[name].page.screenshot({ path: join(FOLDER, `console-${name}.png`) });

  await placeOrders(45);
  await platform.local('pm2', 'stop', 'billing-consumer');
  await placeOrders(45);
  await eventually('the page shows the outage', () => pages.light.page.locator('#overall', { hasText: 'Degraded' }).isVisible());
  await picture('light');
  await platform.local('pm2', 'start', 'billing-consumer');
  await placeOrders(30);
  await eventually('all is well', () => pages.dark.page.locator('#overall', { hasText: 'All is well' }).isVisible());
  await picture('dark');
  for (const { close } of Object.values(pages)) await close();
});
