// The console, used as people use it. One platform serves all of these, one after the other.
'use strict';

const assert = require('node:assert');
const { readFileSync } = require('node:fs');
const { after, before, beforeEach, test } = require('node:test');

const { launch, openConsole } = require('./browser');
const platform = require('./platform');

const { ask, eventually } = platform;
const AXE = readFileSync(require.resolve('axe-core/axe.min.js'), 'utf8');

let browser;

before(async () => { browser = await launch(); });
after(() => browser?.close());
beforeEach(() => ask('DELETE', '/api/movies'));

/** Opens the console, works with it, and closes it: nothing may have gone wrong meanwhile. */
async function withConsole(work, options, url = platform.url) {
  const { page, close } = await openConsole(browser, url, options);
  page.setDefaultTimeout(15_000);
  await work(page);
  await close();
}

const button = (page, name) => page.getByRole('button', { name, exact: true });
const dialog = (page) => page.getByRole('dialog');
const rows = (page) => page.locator('#movies-list li');
const titles = (page) => page.locator('#movies-list strong').allTextContents();

const add = (...all) => Promise.all(all.map((title) => ask('POST', '/api/movies', { title, description: `About ${title}` })));

async function seen(locator, text) {
  await locator.filter({ hasText: text }).first().waitFor();
}

async function fillMovie(page, title, description) {
  await dialog(page).getByLabel('Title').fill(title);
  await dialog(page).getByLabel('Description').fill(description);
}

/** What the field is said to be wrong in, which has the focus. */
async function problemAt(page, field) {
  await page.waitForFunction((id) => document.getElementById(`${id}-problem`).textContent, field);
  const invalid = await page.locator(`#${field}`).evaluate((input) => input.ariaInvalid === 'true' && input === document.activeElement);
  assert.ok(invalid, `${field} is marked and has the focus`);
  return page.locator(`#${field}-problem`).textContent();
}

/** Opens the question behind a button of a movie: Edit or Delete. What follows may then change the movie. */
async function openFor(page, word, title) {
  await button(page, `${word} ${title}`).click();
  await page.locator('dialog[open] h2', { hasText: new RegExp(`^${word}`) }).waitFor();
}

async function placeOrder(page, user, items = '2', amount = '29.90') {
  await page.getByLabel('User').fill(user);
  await page.getByLabel('Items').fill(items);
  await page.getByLabel('Total amount').fill(amount);
  await button(page, 'Place the order').click();
}

test('a movie is added, changed and deleted', () => withConsole(async (page) => {
  await seen(page.locator('#movies-said'), 'There are no movies yet.');
  await button(page, 'Add a movie').click();
  await fillMovie(page, 'Alien', 'In space no one can hear you scream');
  await button(dialog(page), 'Save').click();
  await seen(rows(page), 'Alien');
  await seen(page.locator('#notice'), 'Added “Alien”.');

  await openFor(page, 'Edit', 'Alien');
  await dialog(page).getByLabel('Title').fill('Aliens & <b>friends</b>');
  await button(dialog(page), 'Save').click();
  await seen(rows(page), 'Aliens & <b>friends</b>');

  await openFor(page, 'Delete', 'Aliens & <b>friends</b>');
  await button(dialog(page), 'Keep it').click();
  assert.strictEqual(await rows(page).count(), 1);
  await openFor(page, 'Delete', 'Aliens & <b>friends</b>');
  await button(dialog(page), 'Delete').click();
  await rows(page).waitFor({ state: 'detached' });
  assert.deepStrictEqual(await ask('GET', '/api/movies'), []);
}));

test('a problem is shown at the field that it names', () => withConsole(async (page) => {
  await button(page, 'Add a movie').click();
  await fillMovie(page, ' ', 'A description');
  await button(dialog(page), 'Save').click();
  assert.match(await problemAt(page, 'title'), /^title must not be/);
  await fillMovie(page, 'A title', '');
  await button(dialog(page), 'Save').click();
  assert.match(await problemAt(page, 'description'), /^description must not be/);
  assert.strictEqual(await page.locator('#title-problem').textContent(), '');
  await button(dialog(page), 'Cancel').click();

  await placeOrder(page, '20', '0', '1');
  assert.match(await problemAt(page, 'items'), /^number_of_items must be/);
  await placeOrder(page, '20', '1', '29.999');
  assert.match(await problemAt(page, 'amount'), /^total_amount must be/);
  await placeOrder(page, '', '1', '29.99');
  assert.match(await problemAt(page, 'user'), /^user_id must/);
}));

test('movies are searched as one types, and the last answer wins', async () => {
  await add('Alien', 'Aliens', 'Brazil');
  await withConsole(async (page) => {
    await eventually('all are shown', async () => (await rows(page).count()) === 3);
    let release;
    const held = new Promise((done) => { release = done; });
    await page.route('**/api/movies?*title=ali', async (route) => {
      const response = await route.fetch();
      await held;
      // The page has given the question up by now, or else gets an answer that it must not show.
      await route.fulfill({ response }).catch(() => {});
    });

    const asked = page.waitForRequest(/title=ali$/);
    await page.getByLabel('Search in titles').pressSequentially('ali');
    await asked;
    await page.getByLabel('Search in titles').fill('aliens');
    await eventually('one is shown', async () => String(await titles(page)) === 'Aliens');
    release();
    await page.getByLabel('Search in titles').fill('bra');
    await eventually('another is shown', async () => String(await titles(page)) === 'Brazil');

    await page.getByLabel('Search in titles').fill('100%');
    await seen(page.locator('#movies-said'), 'No title contains “100%”.');
  });
});

test('pages lead on and back', async () => {
  for (let number = 10; number < 33; number += 1) await add(`Part ${number}`);
  await withConsole(async (page) => {
    await eventually('the first page', async () => (await titles(page))[0] === 'Part 10' && (await rows(page).count()) === 10);
    assert.ok(await button(page, 'Previous').isDisabled());
    await button(page, 'Next').click();
    await eventually('the second page', async () => (await titles(page))[0] === 'Part 20');
    await button(page, 'Next').click();
    await eventually('the last page', async () => String(await titles(page)) === 'Part 30,Part 31,Part 32');
    assert.ok(await button(page, 'Next').isDisabled());
    await button(page, 'Previous').click();
    await eventually('back on the second page', async () => (await titles(page))[0] === 'Part 20');
    await seen(page.locator('#page-number'), 'Page 2');
  });
});

test('of two editors the second is shown what the first has saved', async () => {
  const [movie] = await add('Solaris');
  const path = `/api/movies/${movie.id}`;
  await withConsole(async (page) => {
    await openFor(page, 'Edit', 'Solaris');
    await ask('PUT', path, { title: 'Solaris (1972)' });
    await fillMovie(page, 'Solaris (2002)', 'Mine');
    await button(dialog(page), 'Save').click();

    await seen(page.locator('.theirs-title'), 'Solaris (1972)');
    await seen(page.locator('.mine-title'), 'Solaris (2002)');
    assert.strictEqual((await ask('GET', path)).title, 'Solaris (1972)', 'nothing is overwritten');
    await ask('PUT', path, { title: 'Solyaris' });
    await button(dialog(page), 'Save mine over it').click();
    await seen(page.locator('.theirs-title'), 'Solyaris');
    assert.strictEqual((await ask('GET', path)).title, 'Solyaris', 'nor is what came in between');

    await button(dialog(page), 'Go on from theirs').click();
    assert.strictEqual(await dialog(page).getByLabel('Title').inputValue(), 'Solyaris');
    await dialog(page).getByLabel('Description').fill('Ours');
    await button(dialog(page), 'Save').click();
    await seen(rows(page), 'Ours');
    assert.deepStrictEqual(await ask('GET', path), { id: movie.id, title: 'Solyaris', description: 'Ours' });

    await openFor(page, 'Delete', 'Solyaris');
    await ask('PUT', path, { title: 'Solaris' });
    await button(dialog(page), 'Delete').click();
    await seen(dialog(page), 'nothing has been deleted');
    await seen(page.locator('#remover-text'), '“Solaris”');
    await button(dialog(page), 'Delete').click();
    await seen(page.locator('#movies-said'), 'There are no movies yet.');
  });
});

test('a movie that is gone meanwhile is said to be gone', async () => {
  const [movie] = await add('Stalker');
  await withConsole(async (page) => {
    await openFor(page, 'Edit', 'Stalker');
    await ask('DELETE', `/api/movies/${movie.id}`);
    await button(dialog(page), 'Save').click();
    await seen(dialog(page), `there is no movie with id ${movie.id}`);
    await button(dialog(page), 'Cancel').click();
    await button(page, 'Edit Stalker').click();
    await seen(page.locator('#movies-said'), 'There are no movies yet.');
  });
});

test('all movies are deleted only behind the word', async () => {
  await add('Alien', 'Brazil');
  await withConsole(async (page) => {
    await eventually('both are shown', async () => (await rows(page).count()) === 2);
    await openFor(page, 'Delete', 'all…');
    const go = button(dialog(page), 'Delete all');
    assert.ok(await go.isDisabled());
    await dialog(page).getByLabel('Type delete to go on').fill('delet');
    await page.keyboard.press('Enter');
    assert.ok(await go.isDisabled());
    assert.strictEqual((await ask('GET', '/api/movies')).length, 2);
    await dialog(page).getByLabel('Type delete to go on').fill('delete');
    await go.click();
    await seen(page.locator('#notice'), 'Deleted all movies: 2.');
    await seen(page.locator('#movies-said'), 'There are no movies yet.');
  });
});

test('an order is placed, and seen to arrive at the top of the list', () => withConsole(async (page) => {
  const user = `browser-${Date.now()}`;
  await placeOrder(page, user);
  const placed = page.locator('#placed li').first();
  await seen(placed, 'recorded as order');
  const id = await placed.locator('code').textContent();
  const cells = page.locator('#orders-list tr').first().locator('td');
  await eventually('it is the first of the list', async () => (await cells.nth(1).textContent()) === user);
  const order = (await ask('GET', `/api/orders?order=desc&limit=1&user_id=${user}`))[0];
  assert.strictEqual(order.message_id, id);
  assert.deepStrictEqual((await cells.allTextContents()).slice(0, 4), [String(order.id), user, '2', '29.90']);
}));

test('an order that is repeated after a failure is recorded once', () => withConsole(async (page) => {
  const user = `repeated-${Date.now()}`;
  await page.route('**/api/billing', async (route) => {
    // It reaches the gateway, and the answer is lost.
    await route.fetch();
    await route.abort();
  }, { times: 1 });

  await placeOrder(page, user);
  await seen(page.locator('#order .general'), 'Place it again as it is');
  await button(page, 'Place the order').click();
  await seen(page.locator('#placed li'), 'recorded as order');

  assert.strictEqual((await ask('GET', `/api/orders?user_id=${user}`)).length, 1);
}));

test('a consumer that is stopped is a line that rises, and one that is started a line that falls', () => withConsole(async (page) => {
  const chart = page.locator('[data-chart="ready"]');
  const waiting = async () => Number((await chart.locator('.now').textContent()).replace(',', ''));
  const heights = async () => {
    const line = await chart.locator('.line').getAttribute('d');
    return [...line.matchAll(/[ML][\d.-]+ ([\d.]+)/g)].map((point) => Number(point[1]));
  };
  const part = (name) => page.locator(`[data-part="${name}"]`);
  await seen(page.locator('#overall'), 'All is well');

  await platform.local('pm2', 'stop', 'billing-consumer');
  try {
    await part('consumer').and(page.locator('[data-state="down"]')).waitFor();
    await seen(page.locator('#summary'), 'The consumer: down');
    for (let order = 1; order <= 6; order += 1) {
      await placeOrder(page, 'waiting');
      await eventually(`${order} wait`, async () => (await waiting()) === order);
    }
    assert.match(await page.locator('#placed li').first().textContent(), /posted$/);
    // Upwards is towards 0.
    const [low, high] = [(await heights()).at(0), (await heights()).at(-1)];
    assert.ok(high < low - 30, `from ${low} to ${high}`);
  } finally {
    await platform.local('pm2', 'start', 'billing-consumer');
  }

  await eventually('none waits', async () => (await waiting()) === 0);
  await seen(page.locator('#overall'), 'All is well');
  await seen(page.locator('#placed li').first(), 'recorded as order');
  const all = await heights();
  assert.ok(all.at(-1) > Math.min(...all) + 30, 'the line has fallen');
  await seen(chart.locator('.scale'), 'highest 6');
}));

test('a consumer that can record nothing is told apart from one that is stopped', () => withConsole(async (page) => {
  await seen(page.locator('#overall'), 'All is well');

  await platform.local('stop', 'postgres');
  try {
    await page.locator('[data-part="consumer"][data-state="degraded"]').waitFor();
    await seen(page.locator('#summary'), 'The consumer: records nothing');
    await seen(page.locator('#overall'), 'Degraded');
  } finally {
    await platform.local('start', 'postgres');
  }

  await seen(page.locator('#overall'), 'All is well');
}));

test('a gateway that is gone is said to be gone, and is found again', async () => {
  await add('Alien');
  const gateway = await platform.startGateway();
  await withConsole(async (page) => {
    await seen(rows(page), 'Alien');
    await gateway.stop();

    await seen(page.getByRole('alert'), 'The gateway does not answer since');
    await seen(page.locator('#overall'), 'No gateway');
    await add('Brazil');

    const again = await platform.startGateway({}, gateway.port);
    await seen(page.locator('#overall'), 'All is well');
    await seen(rows(page), 'Brazil');
    assert.ok(await page.locator('#gone').isHidden());
    await again.stop();
  }, {}, gateway.url);
});

test('where keys are in force the page asks for one, keeps it for the tab, and forgets one that is refused', async () => {
  await add('Alien');
  const gateway = await platform.startGatewayWithKeys({ root: ['an-admin-key', 'admin'], guest: ['a-read-key', 'read'] });
  const give = async (page, key) => {
    await dialog(page).getByLabel('API key').fill(key);
    await button(dialog(page), 'Use this key').click();
  };
  const kept = (page) => page.evaluate(() => [{ ...sessionStorage }, { ...localStorage }, document.cookie]);
  await withConsole(async (page) => {
    await give(page, 'a-guess');
    await seen(dialog(page), 'The gateway does not know this key.');
    assert.deepStrictEqual(await kept(page), [{}, {}, '']);

    await give(page, 'an-admin-key');
    await seen(rows(page), 'Alien');
    await seen(page.locator('#overall'), 'All is well');
    await page.locator('#orders-list tr').first().waitFor();
    assert.deepStrictEqual(await kept(page), [{ 'api-key': 'an-admin-key' }, {}, '']);
    await page.reload();
    await seen(rows(page), 'Alien');

    await button(page, 'Forget the key').click();
    await give(page, 'a-read-key');
    await seen(page.locator('#orders-said'), 'it needs the role admin');
    assert.ok(await page.locator('#recorded').isHidden(), 'what another key has shown is gone');
    await button(page, 'Add a movie').click();
    await fillMovie(page, 'Brazil', 'Not with this key');
    await button(dialog(page), 'Save').click();
    await seen(dialog(page), 'it needs the role write');
  }, {}, gateway.url);
  await gateway.stop();
});

test('all of it can be done with the keyboard alone', () => withConsole(async (page) => {
  const press = (...keys) => keys.reduce((before, key) => before.then(() => page.keyboard.press(key)), Promise.resolve());
  const focused = () => page.evaluate(() => document.activeElement.ariaLabel ?? (document.activeElement.labels?.[0]?.textContent || document.activeElement.textContent));
  /** Goes on with Tab until that has the focus, which must be visible there. */
  const tabTo = async (name) => {
    for (let stops = 0; (await focused()) !== name; stops += 1) {
      assert.ok(stops < 40, `${name} is not reached with Tab`);
      await press('Tab');
    }
    const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
    assert.notStrictEqual(outline, 'none', `${name} shows that it has the focus`);
  };
  await seen(page.locator('#movies-said'), 'There are no movies yet.');

  await press('Tab');
  assert.strictEqual(await focused(), 'Skip to the movies');
  await press('Enter');
  await tabTo('Add a movie');
  await press('Enter');
  await page.keyboard.type('Ran');
  await press('Tab');
  await page.keyboard.type('A lord and his three sons');
  await tabTo('Save');
  await press('Enter');
  await seen(rows(page), 'Ran');
  assert.strictEqual(await focused(), 'Add a movie', 'the focus is back where it was');

  await tabTo('Edit Ran');
  await press('Enter');
  await page.locator('#editor[open]').waitFor();
  assert.strictEqual(await focused(), 'Title');
  await press('Escape');
  assert.strictEqual(await focused(), 'Edit Ran');
  await tabTo('Delete Ran');
  await press('Enter');
  await page.locator('#remover[open]').waitFor();
  assert.strictEqual(await focused(), 'Keep it', 'what does no harm comes first');
  await press('Tab', 'Enter');
  await seen(page.locator('#movies-said'), 'There are no movies yet.');
  assert.strictEqual(await focused(), 'Search in titles', 'the focus is not lost with its button');

  await tabTo('User');
  await page.keyboard.type('20');
  await press('Tab');
  await page.keyboard.type('1');
  await press('Tab');
  await page.keyboard.type('9.90');
  await press('Enter');
  await seen(page.locator('#placed li'), 'recorded as order');
}));

test('on a phone nothing has to be scrolled sideways', async () => {
  await add('W'.repeat(200));
  await withConsole(async (page) => {
    const widths = () => page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
    await rows(page).first().waitFor();
    await placeOrder(page, 'W'.repeat(50));
    await seen(page.locator('#placed li'), 'recorded as order');
    assert.deepStrictEqual(await widths(), [360, 360]);
    await page.locator('#movies-list').getByRole('button', { name: /^Edit/ }).click();
    const box = await page.locator('#editor').boundingBox();
    assert.ok(box.x >= 0 && box.x + box.width <= 360, JSON.stringify(box));
  }, { viewport: { width: 360, height: 740 }, isMobile: true, hasTouch: true });
});

for (const colorScheme of ['light', 'dark']) {
  test(`axe finds nothing to mend, ${colorScheme}`, async () => {
    const [movie] = await add('Alien');
    // axe is no part of the page, so its policy would keep it out.
    await withConsole(async (page) => {
      await page.evaluate(AXE);
      const check = async (where) => {
        const { violations } = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ['violations'] }));
        const found = violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => `${node.html} ${node.failureSummary}`).join('\n')}`);
        assert.deepStrictEqual(found, [], where);
      };
      await seen(page.locator('#overall'), 'All is well');
      await placeOrder(page, '20');
      await seen(page.locator('#placed li'), 'recorded as order');
      await check('the page');
      await placeOrder(page, '20', '0');
      await problemAt(page, 'items');
      await check('a problem at a field');
      await openFor(page, 'Edit', 'Alien');
      await ask('PUT', `/api/movies/${movie.id}`, { title: 'Aliens' });
      await button(dialog(page), 'Save').click();
      await button(dialog(page), 'Save mine over it').waitFor();
      await check('a conflict');
      await button(dialog(page), 'Cancel').click();
      await openFor(page, 'Delete', 'all…');
      await check('a question');
    }, { bypassCSP: true, colorScheme, reducedMotion: 'reduce' });
  });
}
