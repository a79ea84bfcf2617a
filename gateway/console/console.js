'use strict';
// The console. It sends requests to this gateway only, and shows answers as text.

const at = (id) => document.getElementById(id);

/** Makes an element with properties and children; strings become text, never HTML. */
function make(name, properties, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

/** Makes an SVG element. */
function draw(name, attributes, ...children) {
  const element = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const attribute in attributes) element.setAttribute(attribute, attributes[attribute]);
  element.append(...children);
  return element;
}

/** A user's text, or its code points if none of its characters is visible. */
const visible = (text) => (/[^\s\p{Cc}\p{Cf}\p{DI}\u2800]/u.test(text) ? text : Array.from(text, (sign) => `U+${sign.codePointAt().toString(16).toUpperCase().padStart(4, 0)}`).join(' '));

/** A user's text for a sentence of the page, whose direction it does not change. */
const quote = (text) => make('bdi', {}, visible(text));

// Requests

const KEY = 'api-key';
/** The time until which orders are not read, after an answer 429. */
let pause = 0;

/** Why an operation failed; status 0 if there was no answer. */
const problem = (status, detail) => Object.assign(new Error(detail), { status });

/** Cancels the run for the first of these controls. */
function end(controls) {
  controls[0].asking?.abort();
  controls[0].asking = null;
  for (const control of controls) control.disabled = false;
}

/**
 * Every request is sent by a run, during which the controls are disabled. `work` returns a function that is
 * called after they are enabled again, unless another run for the first of them has begun.
 */
async function run(controls, work, failed) {
  end(controls);
  const { signal } = (controls[0].asking = new AbortController());
  const focus = document.activeElement;
  for (const control of controls) control.disabled = true;
  let then;
  try {
    then = await work((method, path, options) => ask(method, path, { signal, ...options }));
  } catch (error) {
    then = () => error.status !== 401 && failed(error);
  }
  if (signal.aborted) return;
  end(controls);
  // A disabled control loses the focus.
  if (document.activeElement === document.body && controls.some((control) => control.contains(focus))) (at(focus.id) ?? focus).focus();
  await then?.();
}

async function ask(method, path, { json, headers, signal, timeout = 60_000 }) {
  const key = sessionStorage[KEY];
  const all = { accept: 'application/json', ...headers };
  if (key) all.authorization = `Bearer ${key}`;
  if (json) all['content-type'] = 'application/json';
  let response;
  try {
    response = await fetch(path, { method, headers: all, body: json && JSON.stringify(json), signal: AbortSignal.any([signal, AbortSignal.timeout(timeout)]), cache: 'no-store' });
  } catch {
    throw problem(0, 'The gateway does not answer.');
  }
  const answer = await response.json().catch(() => null);
  signal.throwIfAborted();
  const head = (name) => response.headers.get(name);
  if (response.status === 401) askForKey(key);
  if (response.status === 429) pause = Date.now() + (Number(head('retry-after')) || 1) * 1000;
  if (!response.ok) throw problem(response.status, answer?.detail ?? `The gateway answered ${response.status}.`);
  // Truncated, or from a proxy: the outcome is not known.
  if (!answer) throw problem(502, 'The answer cannot be read.');
  return { answer, tag: head('etag'), next: /<([^>]*)>; rel="next"/.exec(head('link'))?.[1] };
}

// Messages

/** Shows what was done, for 6 seconds. */
function say(...words) {
  at('notice').replaceChildren(...words);
  clearTimeout(say.timer);
  say.timer = setTimeout(() => at('notice').replaceChildren(), 6000);
}

/** Sets a text that is read out whenever it is set, so an equal one is not set again. */
function tell(id, text) {
  if (at(id).textContent !== text) at(id).textContent = text;
}

function clearProblem(form) {
  form.querySelector('.problem')?.remove();
  form.querySelector('[aria-invalid]')?.removeAttribute('aria-invalid');
}

/** Shows a problem at the field that it names, or before the last part of the form. */
function showProblem(form, { message }) {
  clearProblem(form);
  const field = [...form.elements].find(({ name }) => name && new RegExp(`\\b${name}\\b`).test(message));
  const text = make('p', { className: 'problem', role: 'alert' }, message);
  if (!field) return form.lastElementChild.before(text);
  text.id = `${field.id}-problem`;
  field.after(text);
  field.setAttribute('aria-describedby', text.id);
  field.setAttribute('aria-invalid', 'true');
  // The focus stays where the user has moved it.
  if (form.contains(document.activeElement)) field.focus();
}

const controlsOf = (form) => [form, ...form.elements].filter((control) => !control.matches('[data-close]'));

function onSubmit(form, work) {
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    clearProblem(form);
    run(controlsOf(form), work, (error) => showProblem(form, error));
  });
}

/** Opens a dialog, instead of the one for which a movie is read. */
function open(id) {
  const dialog = at(id);
  end([at('rows')]);
  clearProblem(dialog);
  if (!dialog.open) dialog.showModal();
  return dialog;
}

for (const button of document.querySelectorAll('[data-close]')) {
  const form = button.form;
  const dialog = button.closest('dialog');
  button.addEventListener('click', () => dialog.close());
  dialog.addEventListener('close', () => {
    if (form.asking) end(controlsOf(form));
    // The list shows the outcome of a request that was cancelled.
    loadMovies();
  });
}

// Keys

/** Asks for a key, once; forgets a key that was refused. */
function askForKey(refused) {
  if (refused !== sessionStorage[KEY]) return;
  delete sessionStorage[KEY];
  at('forget').hidden = true;
  if (at('keys').open) return;
  const dialog = open('keys');
  if (refused) showProblem(dialog.querySelector('form'), problem(401, 'The gateway refused this key.'));
}

// The page is of no use without a key.
at('keys').addEventListener('cancel', (event) => event.preventDefault());

onSubmit(at('keys').querySelector('form'), async () => {
  const key = at('key').value.trim();
  if (!/^[!-~]+$/.test(key)) throw problem(0, 'A key has visible ASCII characters only.');
  sessionStorage[KEY] = key;
  return () => {
    at('key').value = '';
    at('keys').close();
    reload();
  };
});

at('forget').onclick = () => {
  delete sessionStorage[KEY];
  reload();
};

// The system

const SECONDS_SHOWN = 180;
const moments = [];
let goneSince = null;
let outages = 0;

for (const [name, title, x, y, width] of [
  ['gateway', 'api-gateway', 98, 27, 204],
  ['inventory', 'inventory-api', 12, 144, 128],
  ['movies-db', 'PostgreSQL', 12, 282, 128],
  ['rabbitmq', 'RabbitMQ', 172, 144, 216],
  ['consumer', 'consumer', 172, 212, 102],
  ['billing', 'billing-api', 284, 212, 104],
  ['orders-db', 'PostgreSQL', 172, 282, 216],
]) {
  at('picture').append(draw('g', { 'data-part': name },
    draw('rect', { x, y, width, height: 45 }), draw('circle', { cx: x + 14, cy: y + 17 }),
    draw('text', { x: x + 26, y: y + 21 }, title), draw('text', { class: 'fact', x: x + 26, y: y + 37 })));
}

const CHARTS = [
  ['ready', 'Orders waiting'],
  ['rate', 'Orders a second'],
  ['consumers', 'Consumers'],
  ['dead', 'Dead letters'],
].map(([name, title]) => {
  const area = draw('path', { class: 'area' });
  const line = draw('path', { class: 'line' });
  const svg = draw('svg', { viewBox: `0 0 ${SECONDS_SHOWN} 40`, preserveAspectRatio: 'none', role: 'img' }, draw('path', { class: 'base', d: `M0 40H${SECONDS_SHOWN}` }), area, line);
  const now = make('p', { className: 'now' }, '–');
  const most = make('span', {});
  const figure = make('figure', {}, make('figcaption', {}, title), now, svg, make('div', { className: 'scale' }, most, make('span', {}, 'last 3 min')));
  figure.dataset.chart = name;
  at('charts').append(figure);
  return { name, title, svg, area, line, now, most };
});

function drawCharts() {
  const end = moments.at(-1).time;
  for (const { name, title, svg, area, line, now, most } of CHARTS) {
    const highest = Math.max(0, ...moments.map((moment) => moment[name] ?? 0));
    const top = Math.max(1, highest);
    let stroke = '', fill = '', pen = 'M';
    for (const moment of moments) {
      const point = `${(SECONDS_SHOWN - (end - moment.time) / 1000).toFixed(1)} ${(39 - (moment[name] / top) * 37).toFixed(1)}`;
      // A value that is missing leaves a gap.
      if (moment[name] != null) {
        stroke += pen + point;
        fill += `M${point}V40`;
        pen = 'L';
      } else pen = 'M';
    }
    line.setAttribute('d', stroke);
    area.setAttribute('d', fill);
    const value = moments.at(-1)[name];
    now.textContent = value == null ? '–' : shortly(value);
    most.textContent = `highest ${shortly(highest)}`;
    svg.setAttribute('aria-label', `${title}: ${now.textContent} now, ${most.textContent} in 3 minutes`);
  }
}

const shortly = (number) => number.toLocaleString('en', { maximumFractionDigits: number < 10 ? 1 : 0 });

function remember(status) {
  const moment = { time: Date.now(), ...status?.queue };
  if (status) {
    moment.posted = status.gateway.orders_posted;
    // The rate of five seconds: a shorter time would give a peak for each order. A new gateway counts from 0.
    const before = moments.find(({ time, posted }) => posted != null && moment.time - time < 5500);
    if (before?.posted <= moment.posted) moment.rate = ((moment.posted - before.posted) * 1000) / Math.max(1, moment.time - before.time);
  }
  moments.push(moment);
  while (moment.time - moments[0].time > SECONDS_SHOWN * 1000) moments.shift();
  drawCharts();
}

const WORDS = { up: 'up', degraded: 'lacks its database', down: 'down', blocked: 'blocked by an alarm', refusing: 'refuses orders' };

function paint(status) {
  const { gateway, inventory = {}, rabbitmq = {}, consumer = {}, billing = {}, queue } = status ?? {};
  const count = (number) => number.toLocaleString('en');
  const latency = (part) => (part.latency_ms == null ? '' : ` · ${part.latency_ms.toFixed(1)} ms`);
  const fact = (part) => part.state && part.state + (part.state === 'up' ? latency(part) : '');
  const records = { up: queue?.consumers > 1 ? `${queue.consumers} run` : 'records', degraded: 'cannot record', down: queue?.consumers ? 'no answer' : 'none runs' };
  const parts = {
    gateway: gateway ? ['up', `${count(gateway.orders_posted)} orders posted`, 'The gateway'] : ['down', 'does not answer', 'The gateway'],
    inventory: [inventory.state, fact(inventory), 'The inventory'],
    'movies-db': [inventory.postgresql, 'movies_db', 'PostgreSQL of the inventory'],
    rabbitmq: [rabbitmq.state, queue ? `${count(queue.ready)} waiting${latency(rabbitmq)}` : rabbitmq.state, 'RabbitMQ'],
    consumer: [consumer.state, records[consumer.state], 'The consumer', consumer.state === 'degraded' && 'records nothing'],
    billing: [billing.state, fact(billing), 'billing-api'],
    'orders-db': [billing.postgresql, 'billing_db', 'PostgreSQL of billing'],
  };
  const words = [];
  for (const [name, [state = 'unknown', fact, title, word]] of Object.entries(parts)) {
    const node = document.querySelector(`[data-part="${name}"]`);
    node.dataset.state = state;
    node.lastChild.textContent = fact ?? '';
    words.push(`${title}: ${word || (WORDS[state] ?? 'not known')}`);
  }
  const bad = words.filter((word) => !word.endsWith(': up'));
  at('picture').setAttribute('aria-label', `The platform. ${words.join('. ')}.`);
  tell('summary', !status ? '' : bad.length ? `${bad.join('. ')}.` : 'Everything is up.');
  const [state, text] = !status ? ['down', 'No gateway'] : status.status === 'ok' ? ['up', 'All is well'] : ['degraded', 'Degraded'];
  at('overall').dataset.state = state;
  tell('overall', text);
}

const look = () => run([at('picture')], async (ask) => {
  const { answer } = await ask('GET', '/api/status', { timeout: 4000 });
  return () => {
    at('gone').hidden = true;
    remember(answer);
    paint(answer);
    if (goneSince) loadMovies();
    goneSince = null;
    const { orders_readable, gateway, billing, queue } = answer;
    if (!orders_readable) tell('recorded-said', 'This gateway does not show them (EXPOSE_ORDERS); billing-api does.');
    readable ??= orders_readable;
    if (!readable || billing.state !== 'up' || Date.now() < pause) return;
    if (!at('placed').asking) run([at('placed')], follow, () => {});
    recorded.refresh(`${outages} ${gateway.orders_posted} ${queue?.ready}`);
    if (queue?.dead != null) letters.refresh(`${outages} ${queue.dead}`);
  };
}, ({ status, message }) => {
  goneSince ??= new Date();
  outages += 1;
  remember(null);
  paint(null);
  tell('gone', status ? `The gateway cannot report the status: ${message}` : `The gateway has not answered since ${goneSince.toLocaleTimeString()}.`);
  at('gone').hidden = false;
});

// Movies

/** The text that is searched in titles, and the addresses of the pages up to the one shown. */
let wanted;

function firstPage() {
  // A text that was cut may end in half a surrogate pair.
  const part = at('search').value.toWellFormed();
  return { part, pages: [`/api/movies?limit=10${part && `&title=${encodeURIComponent(part)}`}`] };
}

const search = () => loadMovies(firstPage());

const loadMovies = (what = wanted) => run([at('turn')], async (ask) => {
  wanted = what;
  const { part, pages } = what;
  const { answer, next } = await ask('GET', pages.at(-1));
  if (!answer.length && pages.length > 1) return () => loadMovies({ part, pages: pages.slice(0, -1) });
  return () => showMovies(what, answer, next);
}, (error) => { at('movies-problem').textContent = error.message; });

function showMovies({ part, pages }, movies, next) {
  at('movies-problem').textContent = '';
  const focus = at('movies-list').contains(document.activeElement) && document.activeElement.id;
  at('movies-list').replaceChildren(...movies.map((movie) => {
    const title = visible(movie.title);
    const act = (word, work, className = 'quiet') => make('button', { className, id: `${word}-${movie.id}`, ariaLabel: `${word} ${title}`, onclick: () => opened(movie.id, work) }, word);
    return make('li', {},
      make('div', {}, make('strong', { dir: 'auto' }, title), make('p', { dir: 'auto' }, movie.description)),
      make('div', { className: 'acts' }, act('Edit', openEditor), act('Delete', openRemover, 'quiet danger')));
  }));
  if (focus) (at(focus) ?? at('search')).focus();
  const found = movies.length && `${movies.length}${next || pages.length > 1 ? ' on this page' : ''}`;
  at('movies-said').replaceChildren(...(part ? [`${found || 'None'} with “`, quote(part), '” in the title.'] : [found ? '' : 'There are no movies yet.']));
  at('page-number').textContent = `Page ${pages.length}`;
  at('previous').disabled = pages.length < 2;
  at('next').disabled = !next;
  at('previous').onclick = () => loadMovies({ part, pages: pages.slice(0, -1) });
  at('next').onclick = () => loadMovies({ part, pages: [...pages, next] });
}

at('search').oninput = () => {
  // No dialog opens while the user types.
  end([at('rows')]);
  clearTimeout(search.timer);
  search.timer = setTimeout(search, 200);
};

// One movie

const FIELDS = ['title', 'description'];
/** The movie in the dialog, as it was read; its id is null for a new one. */
let current;
/** Its fields after the browser has normalized their line breaks. */
let filled;

async function read(ask, id) {
  const { answer, tag } = await ask('GET', `/api/movies/${id}`);
  return { id, tag, movie: answer };
}

function openEditor(what) {
  current = what;
  at('editor-heading').textContent = what.id === null ? 'Add a movie' : `Edit movie ${what.id}`;
  filled = FIELDS.map((field) => {
    at(field).value = what.movie[field];
    return at(field).value;
  });
  at('conflict').hidden = true;
  open('editor');
  at('title').focus();
}

at('add').onclick = () => openEditor({ id: null, movie: { title: '', description: '' } });

/** Reads a movie again before a change, since the list may be out of date. */
const opened = (id, work) => run([at('rows')], async (ask) => {
  const what = await read(ask, id);
  return () => work(what);
}, (error) => {
  say(error.message);
  loadMovies();
});

const editor = at('editor').querySelector('form');

/** Changes the movie; if somebody else has changed it, returns it as it is now. */
async function change(ask, method, json) {
  const { id, tag } = current;
  try {
    await ask(method, `/api/movies/${id}`, { json, headers: { 'if-match': tag } });
  } catch (error) {
    if (error.status !== 412) throw error;
    return read(ask, id);
  }
}

onSubmit(editor, async (ask) => {
  const isNew = current.id === null;
  const changes = FIELDS.filter((field, index) => isNew || at(field).value !== filled[index]);
  const json = Object.fromEntries(changes.map((field) => [field, at(field).value]));
  if (isNew) await ask('POST', '/api/movies', { json });
  const theirs = !isNew && changes.length && await change(ask, 'PUT', json);
  return () => {
    if (theirs) return showConflict(theirs, json);
    at('editor').close();
    say(isNew ? 'Added “' : 'Saved “', quote(at('title').value), '”.');
  };
});

function showConflict(theirs, json) {
  const sides = { theirs: ['Saved now', theirs.movie], mine: ['Yours', { ...theirs.movie, ...json }] };
  at('versions').replaceChildren(...Object.entries(sides).map(([side, [heading, movie]]) => make('div', {},
    make('h3', {}, heading), ...FIELDS.map((field) => make('p', { className: `${side}-${field}`, dir: 'auto' }, visible(movie[field]))))));
  at('conflict').hidden = false;
  at('take-theirs').onclick = () => openEditor(theirs);
  at('keep-mine').onclick = () => {
    // Replaces the version shown, and no newer one.
    current = theirs;
    at('conflict').hidden = true;
    editor.requestSubmit();
  };
  at('take-theirs').focus();
}

function openRemover(what) {
  current = what;
  at('remover-text').replaceChildren('“', quote(what.movie.title), `” (movie ${what.id}) will be gone for good.`);
  open('remover');
}

const remover = at('remover').querySelector('form');

onSubmit(remover, async (ask) => {
  const theirs = await change(ask, 'DELETE');
  return () => {
    if (theirs) {
      openRemover(theirs);
      return showProblem(remover, problem(412, 'Somebody else has just changed this movie. Above is what it is now; nothing has been deleted.'));
    }
    at('remover').close();
    say('Deleted “', quote(current.movie.title), '”.');
  };
});

at('delete-all').onclick = () => {
  at('word').value = '';
  at('empty').disabled = true;
  open('emptier');
};

at('word').oninput = () => { at('empty').disabled = at('word').value.trim().toLowerCase() !== 'delete'; };

onSubmit(at('emptier').querySelector('form'), async (ask) => {
  const { answer } = await ask('DELETE', '/api/movies');
  return () => {
    at('emptier').close();
    say(`Deleted all movies: ${answer.deleted.toLocaleString('en')}.`);
    wanted = firstPage();
  };
});

// Orders

/** The order whose outcome is not known; a repeat of it has its key. */
let attempt = null;
/** Whether orders may be read; null before the first status. */
let readable = null;

onSubmit(at('order'), async (ask) => {
  const form = at('order');
  const json = {};
  for (const field of form.querySelectorAll('input')) json[field.name] = field.value.trim();
  const text = JSON.stringify(json);
  if (attempt?.text !== text) attempt = { text, key: `console-${crypto.getRandomValues(new BigUint64Array(2)).join('-')}` };
  try {
    const { answer } = await ask('POST', '/api/billing', { json, headers: { 'idempotency-key': attempt.key } });
    attempt = null;
    return () => {
      form.reset();
      if (form.contains(document.activeElement)) at('user').focus();
      const row = make('li', {}, make('code', {}, answer.message_id), ' ', make('span', {}, 'posted'));
      row.dataset.state = 'degraded';
      at('placed').prepend(row);
      while (at('placed').children.length > 3) at('placed').lastChild.remove();
    };
  } catch (error) {
    if (error.status && error.status < 500) attempt = null;
    else error.message += ' Place it again unchanged: it has a key, and is recorded at most once.';
    throw error;
  }
});

/** Shows which orders of this page are recorded; among many others a user would miss them. */
async function follow(ask) {
  for (const row of at('placed').querySelectorAll('[data-state="degraded"]')) {
    const { answer: [order] } = await ask('GET', `/api/orders?message_id=${encodeURIComponent(row.firstChild.textContent)}`);
    if (!order) continue;
    row.lastChild.textContent = `recorded as order ${order.id}`;
    row.dataset.state = 'up';
  }
}

/** Makes a table of orders or dead letters, the newest first. */
function makeList(name, path, none, columns) {
  const said = make('p', { id: `${name}-said`, className: 'said', role: 'status' });
  const body = make('tbody', {});
  const heads = columns.map(([title, , className = '']) => make('th', { scope: 'col', className }, title));
  const wide = make('div', { className: 'wide', role: 'region', ariaLabel: name, tabIndex: 0 }, make('table', {}, make('thead', {}, make('tr', {}, ...heads)), body));
  const older = make('button', {}, 'Show older');
  at(name).append(said, wide, make('div', { className: 'foot' }, older));
  let rows, further, news, looks;

  const show = () => {
    said.textContent = rows.length ? '' : none;
    wide.hidden = !rows.length;
    older.hidden = !further;
    body.replaceChildren(...rows.map((row) => make('tr', {}, ...columns.map(([, field, className = '']) => {
      const text = String(row[field] ?? '');
      return make('td', { className, dir: 'auto' }, field.endsWith('_at') ? make('time', { dateTime: text }, moment.format(new Date(text))) : visible(text));
    }))));
  };
  const read = (controls, page, take) => run(controls, async (ask) => {
    const { answer, next } = await ask('GET', page);
    return () => {
      take(answer, next);
      at(name).hidden = false;
      show();
    };
  }, (error) => {
    // Another key may have the right.
    if (error.status === 403) readable = false;
    if (error.status !== 429) said.textContent = error.message;
  });
  older.onclick = () => read([wide, older], further, (answer, next) => {
    rows.push(...answer);
    further = next;
  });

  return {
    reset() {
      rows = [];
      further = news = null;
      end([wide, older]);
      show();
    },
    /** Reads the newest page twice after `now` has changed, which may be before the rows change. */
    refresh(now) {
      if (now !== news) looks = 2;
      news = now;
      if (!looks || wide.asking) return;
      read([wide], `${path}?order=desc&limit=10`, (answer, next) => {
        looks -= 1;
        const last = answer.at(-1)?.id;
        const rest = next && rows.length < 500 && rows[0]?.id >= last ? rows.filter(({ id }) => id < last) : [];
        if (!rest.length) further = next;
        rows = [...answer, ...rest];
      });
    },
  };
}

const moment = new Intl.DateTimeFormat(undefined, { dateStyle: 'medium', timeStyle: 'medium' });
const recorded = makeList('recorded', '/api/orders', 'None is recorded yet.', [['Id', 'id', 'number'], ['User', 'user_id'], ['Items', 'number_of_items', 'number'], ['Total', 'total_amount', 'number'], ['Recorded', 'created_at']]);
const letters = makeList('dead-letters', '/api/dead-letters', 'There are none.', [['Id', 'id', 'number'], ['Reason', 'reason'], ['What is wrong', 'detail'], ['Message id', 'message_id'], ['Since', 'received_at']]);

// Start

function reload() {
  at('forget').hidden = !sessionStorage[KEY];
  for (const id of ['picture', 'placed', 'rows']) end([at(id)]);
  readable = null;
  at('dead-letters').hidden = true;
  recorded.reset();
  letters.reset();
  search();
}

reload();
(async () => {
  for (;;) {
    const begun = performance.now();
    if (!at('keys').open) await look();
    await new Promise((done) => setTimeout(done, Math.max(100, 1000 - (performance.now() - begun))));
  }
})();
