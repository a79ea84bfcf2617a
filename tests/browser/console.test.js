// The console, used as people use it. One platform serves all tests, one after the other.
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

/** Opens the console, works with it, and closes it; fails if the page logged an error meanwhile. */
async function withConsole(work, options, url = platform.url) {
  const { page, close } = await openConsole(browser, url, options);
  page.setDefaultTimeout(30_000);
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

/** The problem of the field that has the focus. */
async function problemAt(page, field) {
  await page.waitForFunction((id) => document.getElementById(`${id}-problem`), field);
  const invalid = await page.locator(`#${field}`).evaluate((input) => input.ariaInvalid === 'true' && input === document.activeElement);
  assert.ok(invalid, `${field} is marked and has the focus`);
  return page.locator(`#${field}-problem`).textContent();
}

/** Opens the dialog of a button of a movie: Edit or Delete. */
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

/** Clicks twice at once, as an impatient user does. */
const twice = (locator) => locator.evaluate((element) => {
  element.click();
  element.click();
});

/**
 * Keeps the answers to the requests that match from the page until they are released. With `times`, only those of
 * the first `times` requests.
 */
async function hold(page, pattern, method, times) {
  const all = [];
  const given = [];
  let letGo;
  const gate = new Promise((done) => { letGo = done; });
  await page.route(pattern, async (route) => {
    if (method && route.request().method() !== method) return route.fallback();
    all.push(route.request().url());
    const answered = (async () => {
      const response = await route.fetch();
      await gate;
      // The page may have cancelled the request by now.
      await route.fulfill({ response }).catch(() => {});
    })();
    given.push(answered);
    return answered;
  }, { times });
  return {
    all,
    letGo,
    asked: () => eventually('a request arrives', () => all.length > 0),
    /** Waits until the page has drawn the answers. */
    over: async () => {
      await Promise.all(given);
      await page.evaluate(() => new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn))));
    },
  };
}

/** Places orders past the page. */
const placeOrders = (users) => Promise.all(users.map((user_id) => ask('POST', '/api/billing', { user_id, number_of_items: 1, total_amount: '1' })));

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
  assert.strictEqual(await page.locator('#title-problem').count(), 0);
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
      // The page has cancelled the request by now, or it gets an answer that it must not show.
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
    await seen(page.locator('#movies-said'), 'None with “100%” in the title.');
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
    assert.strictEqual((await ask('GET', path)).title, 'Solyaris', 'the change in between is not overwritten either');

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
    await dialog(page).getByLabel('Title').fill('Сталкер');
    await button(dialog(page), 'Save').click();
    await seen(dialog(page), `there is no movie with id ${movie.id}`);
    await button(dialog(page), 'Cancel').click();
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
  const cells = page.locator('#recorded tbody tr').first().locator('td');
  await eventually('it is the first of the list', async () => (await cells.nth(1).textContent()) === user);
  const order = (await ask('GET', `/api/orders?order=desc&limit=1&user_id=${user}`))[0];
  assert.strictEqual(order.message_id, id);
  assert.deepStrictEqual((await cells.allTextContents()).slice(0, 4), [String(order.id), user, '2', '29.90']);
}));

test('an order that is repeated after a failure is recorded once', () => withConsole(async (page) => {
  const user = `repeated-${Date.now()}`;
  await page.route('**/api/billing', async (route) => {
    // The order reaches the gateway, and the answer is lost.
    await route.fetch();
    await route.abort();
  }, { times: 1 });

  await placeOrder(page, user);
  await seen(page.locator('#order .problem'), 'Place it again unchanged');
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
    // Smaller coordinates are higher.
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
  const said = page.locator('#recorded-said');
  let stopped;
  const held = new Promise((done) => { stopped = done; });
  let asked = false;
  // The page requests the list while the database is up, and the request arrives when it is down.
  await page.route('**/api/orders?order=desc*', async (route) => {
    asked = true;
    await held;
    await route.continue();
  }, { times: 1 });
  await placeOrders(['before the outage']);
  await eventually('the list is requested', () => asked);

  await platform.local('stop', 'postgres');
  try {
    stopped();
    await eventually('the page shows that the list cannot be read', async () => (await said.textContent()) !== '');
    await page.locator('[data-part="consumer"][data-state="degraded"]').waitFor();
    await seen(page.locator('#summary'), 'The consumer: records nothing');
    await seen(page.locator('#overall'), 'Degraded');
  } finally {
    stopped();
    await platform.local('start', 'postgres');
  }

  await seen(page.locator('#overall'), 'All is well');
  await seen(page.locator('#recorded tbody tr'), 'before the outage');
  await eventually('the list has its former rows', async () => (await said.textContent()) === '');
}, { outage: true }));

test('a gateway that is gone is said to be gone, and is found again', async () => {
  await add('Alien');
  const gateway = await platform.startGateway();
  await withConsole(async (page) => {
    await seen(rows(page), 'Alien');
    await gateway.stop();

    await seen(page.getByRole('alert'), 'The gateway has not answered since');
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
    await seen(dialog(page), 'The gateway refused this key.');
    assert.deepStrictEqual(await kept(page), [{}, {}, '']);

    await give(page, 'an-admin-key');
    await seen(rows(page), 'Alien');
    await seen(page.locator('#overall'), 'All is well');
    await page.locator('#recorded tbody tr').first().waitFor();
    assert.deepStrictEqual(await kept(page), [{ 'api-key': 'an-admin-key' }, {}, '']);
    await page.reload();
    await seen(rows(page), 'Alien');

    await button(page, 'Forget the key').click();
    await give(page, 'a-read-key');
    await seen(page.locator('#recorded-said'), 'it needs the role admin');
    assert.ok(await page.locator('#recorded table').isHidden(), 'the rows of another key are not shown');
    await button(page, 'Add a movie').click();
    await fillMovie(page, 'Brazil', 'Not with this key');
    await button(dialog(page), 'Save').click();
    await seen(dialog(page), 'it needs the role write');
  }, {}, gateway.url);
  await gateway.stop();
});

// Answers that come late, twice or out of order

const sorted = (ids) => ids.every((id, at) => at === 0 || Number(ids[at - 1]) > Number(id));

test('a second click on Next or Previous, while the first is not answered, does nothing', async () => {
  for (let number = 10; number < 43; number += 1) await add(`Part ${number}`);
  await withConsole(async (page) => {
    await eventually('the first page', async () => (await titles(page))[0] === 'Part 10');
    for (const [name, wanted, first] of [['Next', 'Page 2', 'Part 20'], ['Next', 'Page 3', 'Part 30'], ['Previous', 'Page 2', 'Part 20'], ['Previous', 'Page 1', 'Part 10']]) {
      const held = await hold(page, '**/api/movies?*');
      await twice(button(page, name));
      await held.asked();
      assert.ok(await button(page, name).isDisabled(), `${name} cannot be used while it runs`);
      held.letGo();
      await seen(page.locator('#page-number'), wanted);
      await eventually(first, async () => (await titles(page))[0] === first);
      assert.strictEqual(held.all.length, 1);
    }
    assert.ok(await button(page, 'Previous').isDisabled(), 'there is nothing before the first page');
  });
});

test('a page that could not be read leads on from the one that is shown', async () => {
  for (let number = 10; number < 33; number += 1) await add(`Part ${number}`);
  await withConsole(async (page) => {
    await eventually('the first page', async () => (await titles(page))[0] === 'Part 10');
    await page.route('**/api/movies?*', (route) => route.abort(), { times: 1 });
    await button(page, 'Next').click();
    await seen(page.locator('#movies-problem'), 'does not answer');
    assert.ok(await button(page, 'Previous').isDisabled());
    await button(page, 'Next').click();
    await seen(page.locator('#page-number'), 'Page 2');
    await eventually('the second page', async () => (await titles(page))[0] === 'Part 20');
  });
});

test('older orders are shown once, however often they are asked for and whatever comes meanwhile', async () => {
  for (let number = 0; number < 25; number += 1) await placeOrders([`older-${number}`]);
  await eventually('all are recorded', async () => (await ask('GET', '/api/orders?order=desc&limit=1'))[0]?.user_id === 'older-24');
  await withConsole(async (page) => {
    const ids = () => page.locator('#recorded tbody tr td:first-child').allTextContents();
    const users = () => page.locator('#recorded tbody tr td:nth-child(2)').allTextContents();
    await eventually('a page', async () => (await ids()).length === 10);
    const held = await hold(page, /\/api\/orders\?.*after=/);
    await twice(button(page, 'Show older').first());
    await held.asked();
    await placeOrders(['meanwhile']);
    await eventually('it is recorded', async () => (await ask('GET', '/api/orders?order=desc&limit=1'))[0].user_id === 'meanwhile');
    held.letGo();

    await eventually('the new one and the older ones', async () => (await users())[0] === 'meanwhile' && (await ids()).length === 21);
    assert.ok(sorted(await ids()), String(await ids()));
    assert.strictEqual(held.all.length, 1);
  });
});

test('a movie that comes late opens nothing over what was opened meanwhile', async () => {
  await add('Alien');
  await withConsole(async (page) => {
    const held = await hold(page, /\/api\/movies\/\d+$/);
    await button(page, 'Edit Alien').click();
    await held.asked();
    await button(page, 'Add a movie').click();
    await fillMovie(page, 'Brazil', 'Mine');
    held.letGo();
    await held.over();

    await seen(page.locator('#editor-heading'), 'Add a movie');
    assert.strictEqual(await dialog(page).getByLabel('Title').inputValue(), 'Brazil');
    await button(dialog(page), 'Save').click();
    await seen(rows(page), 'Brazil');
    assert.deepStrictEqual((await titles(page)).sort(), ['Alien', 'Brazil']);
  });
});

test('what is answered to an editor that was closed is not shown in the next one', async () => {
  const [alien] = await add('Alien');
  await add('Brazil');
  await withConsole(async (page) => {
    await openFor(page, 'Edit', 'Alien');
    await ask('PUT', `/api/movies/${alien.id}`, { title: 'Aliens' });
    await dialog(page).getByLabel('Title').fill('Mine');
    const held = await hold(page, /\/api\/movies\/\d+$/, 'PUT');
    await twice(button(dialog(page), 'Save'));
    await held.asked();
    assert.ok(await button(dialog(page), 'Save').isDisabled());
    assert.ok(await dialog(page).getByLabel('Title').isDisabled(), 'a text that is typed now would be lost');
    await button(dialog(page), 'Cancel').click();
    await seen(rows(page), 'Aliens');
    await openFor(page, 'Edit', 'Brazil');
    held.letGo();
    await held.over();

    assert.ok(await page.locator('#conflict').isHidden());
    assert.strictEqual(await dialog(page).getByLabel('Title').inputValue(), 'Brazil');
    await dialog(page).getByLabel('Title').fill('Brazil (1985)');
    await button(dialog(page), 'Save').click();
    await seen(rows(page), 'Brazil (1985)');
    assert.strictEqual(held.all.length, 2);
  });
});

test('an order is placed once by two clicks, and the form waits for its answer', () => withConsole(async (page) => {
  const user = `twice-${Date.now()}`;
  const held = await hold(page, '**/api/billing');
  await page.getByLabel('User').fill(user);
  await page.getByLabel('Items').fill('1');
  await page.getByLabel('Total amount').fill('1');
  await twice(button(page, 'Place the order'));
  await held.asked();
  assert.ok(await page.getByLabel('User').isDisabled(), 'a text that is typed now would be lost');
  held.letGo();
  await seen(page.locator('#placed li'), 'recorded as order');

  assert.strictEqual(held.all.length, 1);
  assert.strictEqual(await page.getByLabel('User').inputValue(), '');
  assert.ok(await page.getByLabel('User').evaluate((input) => input === document.activeElement));
}));

test('what a list says belongs to the question that it answers', () => withConsole(async (page) => {
  await seen(page.locator('#movies-said'), 'There are no movies yet.');
  const held = await hold(page, '**/api/movies?*title=zzz');
  await page.getByLabel('Search in titles').fill('zzz');
  await held.asked();
  await page.getByLabel('Search in titles').evaluate((input) => { input.value = 'other'; });
  held.letGo();
  await seen(page.locator('#movies-said'), 'None with “zzz” in the title.');
}));

test('what a key may see is not shown after it was forgotten', async () => {
  await placeOrders(['secret']);
  await eventually('it is recorded', async () => (await ask('GET', '/api/orders?user_id=secret')).length > 0);
  const gateway = await platform.startGatewayWithKeys({ root: ['an-admin-key', 'admin'], guest: ['a-read-key', 'read'] });
  const give = async (page, key) => {
    await dialog(page).getByLabel('API key').fill(key);
    await button(dialog(page), 'Use this key').click();
  };
  await withConsole(async (page) => {
    const held = await hold(page, '**/api/orders?*', 'GET', 1);
    await give(page, 'an-admin-key');
    await held.asked();
    await button(page, 'Forget the key').click();
    await give(page, 'a-read-key');
    await seen(page.locator('#overall'), 'All is well');
    held.letGo();
    await held.over();

    await seen(page.locator('#recorded-said'), 'it needs the role admin');
    assert.ok(await page.locator('#recorded table').isHidden());
    assert.ok(await page.locator('#dead-letters').isHidden(), 'nor are dead letters');
  }, {}, gateway.url);
  await gateway.stop();
});

test('news that could not be read is asked for again', () => withConsole(async (page) => {
  await seen(page.locator('#overall'), 'All is well');
  const user = `news-${Date.now()}`;
  let failed = 0;
  await page.route('**/api/orders?order=desc*', (route) => {
    failed += 1;
    return route.fulfill({ status: 429, headers: { 'retry-after': '1' }, json: { detail: 'too many requests' } });
  }, { times: 2 });
  await placeOrders([user]);
  await eventually('two were refused', () => failed === 2);
  await seen(page.locator('#recorded tbody tr'), user);
}));

test('whatever is done with a movie is done once by two clicks', async () => {
  await add('Alien');
  await withConsole(async (page) => {
    /** Clicks twice, and releases the answers after there was time for a second request. */
    const once = async (click, pattern, method) => {
      const held = await hold(page, pattern, method);
      await twice(click);
      await held.asked();
      held.letGo();
      await held.over();
      return held.all;
    };
    const all = [];
    all.push(await once(button(page, 'Edit Alien'), /\/api\/movies\/\d+$/, 'GET'));
    await dialog(page).getByLabel('Title').fill('Aliens');
    all.push(await once(button(dialog(page), 'Save'), /\/api\/movies\/\d+$/, 'PUT'));
    await seen(rows(page), 'Aliens');
    all.push(await once(button(page, 'Delete Aliens'), /\/api\/movies\/\d+$/, 'GET'));
    all.push(await once(button(dialog(page), 'Delete'), /\/api\/movies\/\d+$/, 'DELETE'));
    await seen(page.locator('#movies-said'), 'There are no movies yet.');
    await twice(button(page, 'Add a movie'));
    await fillMovie(page, 'Brazil', 'A clerk');
    all.push(await once(button(dialog(page), 'Save'), '**/api/movies', 'POST'));
    await seen(rows(page), 'Brazil');
    await twice(button(page, 'Delete all…'));
    await dialog(page).getByLabel('Type delete to go on').fill('delete');
    all.push(await once(button(dialog(page), 'Delete all'), '**/api/movies', 'DELETE'));
    await seen(page.locator('#notice'), 'Deleted all movies: 1.');
    assert.deepStrictEqual(all.map((asked) => asked.length), [1, 1, 1, 1, 1, 1]);
    await seen(page.locator('#movies-said'), 'There are no movies yet.');
  });
});

test('a movie that comes late does not open over what is typed meanwhile', async () => {
  await add('Alien', 'Brazil');
  await withConsole(async (page) => {
    const held = await hold(page, /\/api\/movies\/\d+$/);
    await button(page, 'Delete Alien').click();
    await held.asked();
    await page.getByLabel('Search in titles').pressSequentially('bra');
    held.letGo();
    await held.over();
    await eventually('the movies with the text are shown', async () => String(await titles(page)) === 'Brazil');

    assert.strictEqual(await page.locator('dialog[open]').count(), 0);
    assert.ok(await page.getByLabel('Search in titles').evaluate((input) => input === document.activeElement));
  });
});

for (const [name, items, shown] of [['an answer', '1', '#placed li'], ['a problem', '0', '#items-problem']]) {
  test(`${name} that comes late leaves the focus where somebody types by now`, () => withConsole(async (page) => {
    const held = await hold(page, '**/api/billing');
    await placeOrder(page, '20', items);
    await held.asked();
    await page.getByLabel('Search in titles').focus();
    held.letGo();
    await page.locator(shown).waitFor();
    await page.keyboard.type('here');
    assert.strictEqual(await page.getByLabel('Search in titles').inputValue(), 'here');
  }));
}

test('a change whose answer was lost is shown as soon as its dialog is closed', async () => {
  const { id } = (await add('Alien'))[0];
  await withConsole(async (page) => {
    /** Makes the change and loses its answer. */
    const lose = (method) => page.route(/\/api\/movies(\/\d+)?$/, async (route) => {
      if (route.request().method() !== method) return route.fallback();
      await route.fetch();
      return route.abort();
    });
    await lose('POST');
    await button(page, 'Add a movie').click();
    await fillMovie(page, 'Brazil', 'A clerk');
    await button(dialog(page), 'Save').click();
    await seen(dialog(page), 'The gateway does not answer.');
    await button(dialog(page), 'Cancel').click();
    await seen(rows(page), 'Brazil');

    await lose('DELETE');
    await page.locator(`#Delete-${id}`).click();
    await button(dialog(page), 'Delete').click();
    await seen(dialog(page), 'The gateway does not answer.');
    await page.keyboard.press('Escape');
    await eventually('it is gone', async () => String(await titles(page)) === 'Brazil');
  });
});

test('an answer that cannot be read is said to be one, and what comes after it is shown', async () => {
  await add('Alien');
  await withConsole(async (page) => {
    const misread = (pattern) => page.route(pattern, (route) => route.fulfill({ status: 200, contentType: 'text/html', body: '<h1>Log in</h1>' }), { times: 1 });
    await seen(page.locator('#overall'), 'All is well');
    await misread('**/api/status');
    await seen(page.locator('#gone'), 'The gateway cannot report the status: The answer cannot be read.');
    await seen(page.locator('#overall'), 'All is well');

    await misread(/\/api\/movies\/\d+$/);
    await button(page, 'Edit Alien').click();
    await seen(page.locator('#notice'), 'The answer cannot be read.');
    await misread('**/api/movies?*');
    await page.getByLabel('Search in titles').fill('ali');
    await seen(page.locator('#movies-problem'), 'The answer cannot be read.');
    await misread('**/api/billing');
    await placeOrder(page, 'misread');
    await seen(page.locator('#order .problem'), 'Place it again unchanged');
    await misread('**/api/orders?order=desc*');
    await button(page, 'Place the order').click();
    await seen(page.locator('#placed li'), 'recorded as order');
    await seen(page.locator('#recorded tbody tr'), 'misread');
    assert.strictEqual(await page.locator('#recorded-said').textContent(), '');
  });
});

// What is not edited, and what is not visible

test('saving sends the fields that were edited, and no others', async () => {
  const title = 'Two\nlines';
  const description = 'one\r\ntwo\rthree';
  const { id } = await ask('POST', '/api/movies', { title, description });
  const now = () => ask('GET', `/api/movies/${id}`);
  const editIt = async (page) => {
    await page.locator(`#Edit-${id}`).click();
    await page.locator('#editor[open]').waitFor();
  };
  await withConsole(async (page) => {
    const sent = [];
    page.on('request', (request) => { if (request.method() === 'PUT') sent.push(request.postDataJSON()); });
    await editIt(page);
    await button(dialog(page), 'Save').click();
    await page.locator('#editor:not([open])').waitFor({ state: 'attached' });
    assert.deepStrictEqual([sent, await now()], [[], { id, title, description }], 'nothing was edited');

    await editIt(page);
    await dialog(page).getByLabel('Description').fill('edited');
    await button(dialog(page), 'Save').click();
    await seen(rows(page), 'edited');
    assert.deepStrictEqual([sent.at(-1), await now()], [{ description: 'edited' }, { id, title, description: 'edited' }]);

    await ask('PUT', `/api/movies/${id}`, { description });
    await editIt(page);
    await ask('PUT', `/api/movies/${id}`, { description: `theirs\r\n${description}` });
    await dialog(page).getByLabel('Title').fill('Mine');
    await button(dialog(page), 'Save').click();
    await seen(page.locator('.mine-description'), 'theirs');
    await button(dialog(page), 'Save mine over it').click();
    await seen(rows(page), 'Mine');
    assert.deepStrictEqual([sent.at(-1), await now()], [{ title: 'Mine' }, { id, title: 'Mine', description: `theirs\r\n${description}` }]);
  });
});

/** Whether the page shows one text to the left of the other. */
const leftToRight = (locator, first, second) => locator.evaluate((element, words) => {
  const [left, right] = words.map((word) => {
    const texts = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
    for (let text = texts.nextNode(); text; text = texts.nextNode()) {
      const begin = text.data.indexOf(word);
      if (begin < 0) continue;
      const range = document.createRange();
      range.setStart(text, begin);
      range.setEnd(text, begin + word.length);
      return range.getBoundingClientRect();
    }
    throw new Error(`${word} is not in ${element.textContent}`);
  });
  return left.right <= right.left + 1 && left.top === right.top;
}, [first, second]);

for (const [name, title] of [['a right-to-left override', '\u202eneila'], ['one that ends its isolation first', '\u2069\u202eneila']]) {
  test(`${name} in a title scrambles nothing around it`, async () => {
    const [{ id }] = await add(title);
    await withConsole(async (page) => {
      await page.getByLabel('Search in titles').fill(title);
      await seen(page.locator('#movies-said'), 'in the title');
      assert.ok(await leftToRight(page.locator('#movies-said'), 'in the', 'title.'), 'the search');
      await page.locator(`#Edit-${id}`).click();
      await dialog(page).getByLabel('Description').fill('edited');
      await button(dialog(page), 'Save').click();
      await seen(page.locator('#notice'), 'Saved');
      assert.ok(await leftToRight(page.locator('#notice'), 'Saved', '”.'), 'the notice');
      await page.locator(`#Delete-${id}`).click();
      await page.locator('#remover[open]').waitFor();
      const question = page.locator('#remover-text');
      assert.ok(await leftToRight(question, '(movie', 'will be'), 'the question');
      assert.ok(await leftToRight(question, 'will be', 'gone for'), 'the question goes on');
      await button(dialog(page), 'Delete').click();
      await seen(page.locator('#notice'), 'Deleted');
      assert.ok(await leftToRight(page.locator('#notice'), 'Deleted', '”.'), 'what was deleted');
    });
  });
}

test('a title of invisible characters is shown by their numbers, and can be edited', async () => {
  await add('\u200b\u2060', '\u3164', '👩🏽‍🚀', 'שלום');
  await withConsole(async (page) => {
    await eventually('all four', async () => (await rows(page).count()) === 4);
    assert.deepStrictEqual((await titles(page)).sort(), ['U+200B U+2060', 'U+3164', 'שלום', '👩🏽‍🚀'].sort());
    await openFor(page, 'Delete', 'U+200B U+2060');
    await seen(page.locator('#remover-text'), '“U+200B U+2060”');
    await button(dialog(page), 'Delete').click();
    await seen(page.locator('#notice'), 'Deleted “U+200B U+2060”.');
    await openFor(page, 'Edit', 'U+3164');
    await dialog(page).getByLabel('Title').fill('Visible');
    await button(dialog(page), 'Save').click();
    await seen(rows(page), 'Visible');
  });
});

test('half a character in the search finds nothing and breaks nothing', () => withConsole(async (page) => {
  await seen(page.locator('#movies-said'), 'There are no movies yet.');
  await page.getByLabel('Search in titles').evaluate((input) => {
    input.value = 'half \ud83d';
    input.dispatchEvent(new Event('input'));
  });
  await seen(page.locator('#movies-said'), 'None with “half');
  await add('Whole');
  await page.getByLabel('Search in titles').fill('whole');
  await seen(rows(page), 'Whole');
}));

test('half a character in a field is told as a problem, and nothing is lost of the rest', () => withConsole(async (page) => {
  const half = (field) => page.locator(`#${field}`).evaluate((input) => { input.value = 'half \ud83d'; });
  await button(page, 'Add a movie').click();
  await fillMovie(page, 'Title', 'Description');
  await half('title');
  await button(dialog(page), 'Save').click();
  assert.match(await problemAt(page, 'title'), /^title is not a well-formed/);
  assert.strictEqual(await dialog(page).getByLabel('Description').inputValue(), 'Description');
  await dialog(page).getByLabel('Title').fill('Whole');
  await button(dialog(page), 'Save').click();
  await seen(rows(page), 'Whole');

  await placeOrder(page, '', '1');
  assert.match(await problemAt(page, 'user'), /^user_id must/);
  await half('user');
  await button(page, 'Place the order').click();
  assert.match(await problemAt(page, 'user'), /^user_id is not a well-formed/);
  await page.getByLabel('User').fill('whole');
  await button(page, 'Place the order').click();
  await seen(page.locator('#placed li'), 'recorded as order');
}));

test('letters that are stacked on one another stay in their place', async () => {
  const title = `Z${'\u0300\u0316'.repeat(120)}`;
  const [{ id }] = await add(title);
  await withConsole(async (page) => {
    await page.locator(`#Delete-${id}`).click();
    await page.locator('#remover[open]').waitFor();
    const shown = await page.locator('#movies-list li > div:first-child, #remover-text bdi').evaluateAll((parts) => parts.map((part) => [getComputedStyle(part).overflow, part.getBoundingClientRect().height < 80]));
    assert.deepStrictEqual(shown, [['clip', true], ['clip', true]]);
  });
});

// Orders of others, and messages that are none

test('one\'s own order is followed among hundreds of others a second', () => withConsole(async (page) => {
  await seen(page.locator('#overall'), 'All is well');
  let others = 0;
  let enough = false;
  const flood = () => Promise.all(Array.from({ length: 16 }, async () => {
    while (!enough) await placeOrders([`other-${(others += 1)}`]);
  }));
  const newest = async () => (await ask('GET', '/api/orders?order=desc&limit=1'))[0].user_id;
  // The newest ten orders that the page reads do not include its own.
  await page.route('**/api/orders?order=desc*', async (route) => {
    const before = others;
    await eventually('others are newer', async () => enough || Number((await newest()).split('-')[1]) > before + 20);
    await route.continue().catch(() => {});
  });
  const flooded = flood();
  try {
    await placeOrder(page, 'mine');
    await seen(page.locator('#placed li'), 'recorded as order');
  } finally {
    enough = true;
    await flooded;
  }
  const id = await page.locator('#placed li code').first().textContent();
  const [order] = await ask('GET', `/api/orders?message_id=${id}`);
  assert.strictEqual(order.user_id, 'mine');
  await seen(page.locator('#placed li'), `recorded as order ${order.id}`);
}));

test('dead letters are a table with reason and time, the newest first', () => withConsole(async (page) => {
  await seen(page.locator('#overall'), 'All is well');
  const before = (await ask('GET', '/api/dead-letters/count')).count;
  const texts = Array.from({ length: 12 }, (_, number) => `no order, ${number}`);
  for (const text of texts) await platform.publish(text, { message_id: `dead-${Date.now()}-${text.length}` });
  await eventually('all are dead letters', async () => (await ask('GET', '/api/dead-letters/count')).count === before + 12);
  const [newest] = await ask('GET', '/api/dead-letters?order=desc&limit=1');

  const letters = page.locator('#dead-letters tbody tr');
  await eventually('the newest is the first', async () => (await letters.first().locator('td').first().textContent()) === String(newest.id));
  const cells = await letters.first().locator('td').allTextContents();
  assert.deepStrictEqual(cells.slice(0, 4), [String(newest.id), newest.reason, newest.detail, newest.message_id]);
  assert.strictEqual(await letters.first().locator('time').getAttribute('datetime'), newest.received_at);
  await seen(page.locator('#dead-letters'), 'can never be recorded');

  const held = await hold(page, /\/api\/dead-letters\?.*after=/);
  await twice(page.locator('#dead-letters').getByRole('button', { name: 'Show older' }));
  await held.asked();
  held.letGo();
  await eventually('older ones too', async () => (await letters.count()) > 10);
  const ids = await letters.locator('td:first-child').allTextContents();
  assert.ok(sorted(ids), String(ids));
  assert.strictEqual(held.all.length, 1);

  await eventually('the page shows the number', async () => (await page.locator('[data-chart="dead"] .now').textContent()) === String(before + 12));
  await platform.local('dead-letters', 'drop', ...ids.slice(0, 12));
  await eventually('the dropped dead letters are not shown', async () => !(await letters.locator('td:first-child').allTextContents()).includes(ids[0]));
}));

test('all of it can be done with the keyboard alone', () => withConsole(async (page) => {
  const press = (...keys) => keys.reduce((before, key) => before.then(() => page.keyboard.press(key)), Promise.resolve());
  const focused = () => page.evaluate(() => document.activeElement.ariaLabel ?? (document.activeElement.labels?.[0]?.textContent || document.activeElement.textContent));
  /** Presses Tab until that element has the focus, which must be visible. */
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
    // axe is not part of the page, whose policy would block it.
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
      await dialog(page).getByLabel('Title').fill('Mine');
      await button(dialog(page), 'Save').click();
      await button(dialog(page), 'Save mine over it').waitFor();
      await check('a conflict');
      await button(dialog(page), 'Cancel').click();
      await openFor(page, 'Delete', 'all…');
      await check('a question');
    }, { bypassCSP: true, colorScheme, reducedMotion: 'reduce' });
  });
}
