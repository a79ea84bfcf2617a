'use strict';
// The console. It asks this gateway and nobody else, and puts what it is told on the page as text.

const at = (id) => document.getElementById(id);
const wait = (ms) => new Promise((done) => setTimeout(done, ms));

/** An element with its properties and children; strings among these are text and nothing else. */
function make(name, properties, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

// Asking

const KEY = 'api-key';

/** Why something was not done; status 0 where no answer came. */
class Problem extends Error {
  constructor(status, detail, headers) {
    super(detail);
    this.status = status;
    this.retryAfter = Number(headers?.get('retry-after')) || 1;
  }
}

async function ask(method, path, { json, headers, signal } = {}) {
  const key = sessionStorage.getItem(KEY);
  const all = { accept: 'application/json', ...headers };
  if (key) all.authorization = `Bearer ${key}`;
  if (json) all['content-type'] = 'application/json';
  let response, text;
  try {
    response = await fetch(path, { method, headers: all, body: json && JSON.stringify(json), signal, cache: 'no-store' });
    text = await response.text();
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Problem(0, 'The gateway does not answer.');
  }
  let answer = null;
  try {
    answer = JSON.parse(text);
  } catch {}
  if (response.status === 401) askForKey(key);
  if (!response.ok) throw new Problem(response.status, answer?.detail ?? `The gateway answered ${response.status}.`, response.headers);
  return { answer, headers: response.headers };
}

const nextPage = (headers) => /<([^>]*)>; rel="next"/.exec(headers.get('link') ?? '')?.[1];

// Saying

/** Tells what was done, for some seconds. */
function say(text) {
  at('notice').textContent = text;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => { at('notice').textContent = ''; }, 6000);
}

function clearProblems(form) {
  for (const problem of form.querySelectorAll('.problem')) problem.textContent = '';
  for (const field of form.querySelectorAll('[aria-invalid]')) field.removeAttribute('aria-invalid');
}

/** Shows a problem at the field that it names, or else where the form has room for it. */
function showProblem(form, error) {
  clearProblems(form);
  const field = [...form.elements].find((field) => field.name && new RegExp(`\\b${field.name}\\b`).test(error.message));
  const place = field && at(field.getAttribute('aria-describedby'));
  (place ?? form.querySelector('.general')).textContent = error.message;
  if (place) {
    field.setAttribute('aria-invalid', 'true');
    field.focus();
  }
}

/** One submit at a time: a second click while the first is under way does nothing. */
function onSubmit(form, work) {
  let busy = false;
  form.addEventListener('submit', async (event) => {
    event.preventDefault();
    if (busy) return;
    busy = true;
    try {
      clearProblems(form);
      await work();
    } catch (error) {
      showProblem(form, error);
    }
    busy = false;
  });
}

function open(id) {
  const dialog = at(id);
  clearProblems(dialog);
  if (!dialog.open) dialog.showModal();
  return dialog;
}

for (const button of document.querySelectorAll('[data-close]')) {
  button.addEventListener('click', () => button.closest('dialog').close());
}

/** Replaces what a list shows; a button in it that had the focus has it again. */
function fill(list, rows) {
  const focus = list.contains(document.activeElement) && document.activeElement.id;
  list.replaceChildren(...rows);
  if (focus) (at(focus) ?? at('search')).focus();
}

// Keys

/** The key is asked for, once; one that was refused is forgotten. */
function askForKey(refused) {
  if (refused === sessionStorage.getItem(KEY)) sessionStorage.removeItem(KEY);
  showKey();
  if (at('keys').open) return;
  const dialog = open('keys');
  if (refused) showProblem(dialog.querySelector('form'), new Problem(401, 'The gateway does not know this key.'));
}

const showKey = () => { at('forget').hidden = !sessionStorage.getItem(KEY); };

// There is nothing to do here without one.
at('keys').addEventListener('cancel', (event) => event.preventDefault());

onSubmit(at('keys').querySelector('form'), async () => {
  const key = at('key').value.trim();
  if (!/^[!-~]+$/.test(key)) throw new Problem(0, 'A key has visible ASCII characters only.');
  sessionStorage.setItem(KEY, key);
  at('key').value = '';
  at('keys').close();
  showKey();
  reload();
});

at('forget').addEventListener('click', () => {
  sessionStorage.removeItem(KEY);
  showKey();
  reload();
});

// The system

const SECONDS_SHOWN = 180;
const moments = [];
let known = null;
let goneSince = null;

const CHARTS = [
  ['ready', 'Orders waiting'],
  ['rate', 'Orders a second'],
  ['consumers', 'Consumers'],
  ['dead', 'Dead letters'],
].map(([name, title]) => {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  svg.setAttribute('viewBox', `0 0 ${SECONDS_SHOWN} 40`);
  svg.setAttribute('preserveAspectRatio', 'none');
  svg.setAttribute('role', 'img');
  const [base, area, line] = ['base', 'area', 'line'].map((name) => {
    const path = document.createElementNS(svg.namespaceURI, 'path');
    path.setAttribute('class', name);
    svg.append(path);
    return path;
  });
  base.setAttribute('d', `M0 40H${SECONDS_SHOWN}`);
  const now = make('p', { className: 'now' }, '–');
  const most = make('span', {});
  const scale = make('div', { className: 'scale' }, most, make('span', {}, 'last 3 min'));
  const figure = make('figure', {}, make('figcaption', {}, title), now, svg, scale);
  figure.dataset.chart = name;
  at('charts').append(figure);
  return { name, title, svg, area, line, now, most };
});

function drawCharts() {
  const end = moments.at(-1).time;
  for (const { name, title, svg, area, line, now, most } of CHARTS) {
    let top = 1, strokes = '', fills = '', run = [];
    for (const moment of moments) if (moment[name] > top) top = moment[name];
    const finish = () => {
      if (run.length) {
        strokes += `M${run.join('L')}`;
        fills += `M${run[0].split(' ')[0]} 40L${run.join('L')}V40Z`;
      }
      run = [];
    };
    // Where nothing is known there is a gap.
    for (const moment of moments) {
      if (moment[name] == null) finish();
      else run.push(`${(SECONDS_SHOWN - (end - moment.time) / 1000).toFixed(1)} ${(39 - (moment[name] / top) * 37).toFixed(1)}`);
    }
    finish();
    line.setAttribute('d', strokes);
    area.setAttribute('d', fills);
    const value = moments.at(-1)[name];
    now.textContent = value == null ? '–' : shortly(value);
    most.textContent = `highest ${shortly(Math.max(0, ...moments.map((moment) => moment[name] ?? 0)))}`;
    svg.setAttribute('aria-label', `${title}: ${now.textContent} now, ${most.textContent} in 3 minutes`);
  }
}

const shortly = (number) => number.toLocaleString('en', { maximumFractionDigits: number < 10 ? 1 : 0 });

function remember(status) {
  const moment = { time: Date.now(), ...status?.queue };
  if (status) {
    moment.posted = status.gateway.orders_posted;
    // Over five seconds, or the line would have a peak for each order. A gateway that was started anew counts from 0.
    const before = moments.find(({ time, posted }) => posted != null && moment.time - time < 5500);
    if (before?.posted <= moment.posted) moment.rate = ((moment.posted - before.posted) * 1000) / Math.max(1, moment.time - before.time);
  }
  moments.push(moment);
  while (moment.time - moments[0].time > SECONDS_SHOWN * 1000) moments.shift();
  drawCharts();
}

const WORDS = { up: 'up', degraded: 'lacks its database', down: 'down', blocked: 'blocked by an alarm', refusing: 'refuses orders', unknown: 'not known' };

function paint(status) {
  const queue = status?.queue;
  const latency = (part) => (part?.latency_ms == null ? '' : ` · ${part.latency_ms.toFixed(1)} ms`);
  const consumer = status?.consumer.state ?? 'unknown';
  const records = { up: queue?.consumers > 1 ? `${queue.consumers} run` : 'records', degraded: 'cannot record', down: queue?.consumers ? 'no answer' : 'none runs' };
  const service = (part) => [part?.state ?? 'unknown', part?.state === 'up' ? `up${latency(part)}` : part?.state ?? ''];
  const parts = {
    gateway: [status ? 'up' : 'down', status ? `${status.gateway.orders_posted.toLocaleString('en')} orders posted` : 'does not answer', 'The gateway'],
    inventory: [...service(status?.inventory), 'The inventory'],
    'movies-db': [status?.inventory.postgresql ?? 'unknown', 'movies_db', 'PostgreSQL of the inventory'],
    rabbitmq: [status?.rabbitmq.state ?? 'unknown', queue ? `${queue.ready.toLocaleString('en')} waiting${latency(status.rabbitmq)}` : status?.rabbitmq.state ?? '', 'RabbitMQ'],
    consumer: [consumer, records[consumer] ?? '', 'The consumer', consumer === 'degraded' && 'records nothing'],
    billing: [...service(status?.billing), 'billing-api'],
    'orders-db': [status?.billing.postgresql ?? 'unknown', 'billing_db', 'PostgreSQL of billing'],
  };
  const words = [];
  for (const [name, [state, fact, title, word]] of Object.entries(parts)) {
    const node = document.querySelector(`[data-part="${name}"]`);
    node.dataset.state = state;
    node.querySelector('.fact').textContent = fact;
    words.push(`${title}: ${word || WORDS[state]}`);
  }
  const bad = words.filter((word) => !word.endsWith(': up'));
  at('picture').setAttribute('aria-label', `The platform. ${words.join('. ')}.`);
  // A live region is read out when it changes, so it changes only when there is news.
  const summary = !status ? '' : bad.length ? `${bad.join('. ')}.` : 'Everything is up.';
  if (at('summary').textContent !== summary) at('summary').textContent = summary;
  const [state, text] = !status ? ['down', 'No gateway'] : status.status === 'ok' ? ['up', 'All is well'] : ['degraded', 'Degraded'];
  at('overall').dataset.state = state;
  if (at('overall').textContent !== text) at('overall').textContent = text;
}

function showGone(error) {
  goneSince ??= new Date();
  const since = goneSince.toLocaleTimeString();
  const text = error.status ? `The gateway cannot say how the platform is: ${error.message}` : `The gateway does not answer since ${since}. This page asks again every second.`;
  if (at('gone').textContent !== text) at('gone').textContent = text;
  at('gone').hidden = false;
}

async function look() {
  try {
    const { answer } = await ask('GET', '/api/status', { signal: AbortSignal.timeout(4000) });
    const first = !known;
    const back = goneSince;
    const moved = known && (known.gateway.orders_posted !== answer.gateway.orders_posted || known.queue?.ready !== answer.queue?.ready);
    known = answer;
    goneSince = null;
    at('gone').hidden = true;
    remember(answer);
    paint(answer);
    if (back) loadMovies();
    if (first || back || moved || pending.size) loadOrders();
  } catch (error) {
    if (error.status === 401) return;
    remember(null);
    paint(null);
    showGone(error);
  }
}

(async () => {
  for (;;) {
    const begun = performance.now();
    if (!at('keys').open) await look();
    await wait(Math.max(100, 1000 - (performance.now() - begun)));
  }
})();

// Movies

/** The pages up to the one that is shown, as addresses; the last one is shown. */
let pages = [];
let asked = null;

function search() {
  const part = at('search').value;
  pages = [`/api/movies?limit=10${part ? `&title=${encodeURIComponent(part)}` : ''}`];
  return loadMovies();
}

async function loadMovies() {
  // The last question wins: an answer to an earlier one is not waited for.
  asked?.abort();
  const mine = (asked = new AbortController());
  try {
    const { answer, headers } = await ask('GET', pages.at(-1), { signal: mine.signal });
    if (mine !== asked) return;
    if (!answer.length && pages.length > 1) {
      pages.pop();
      return loadMovies();
    }
    at('movies-problem').textContent = '';
    showMovies(answer, nextPage(headers));
  } catch (error) {
    if (error.name !== 'AbortError' && error.status !== 401) at('movies-problem').textContent = error.message;
  }
}

function showMovies(movies, next) {
  const part = at('search').value;
  fill(at('movies-list'), movies.map((movie) => {
    const act = (word, work, className = 'quiet') => make('button', { type: 'button', className, id: `${word}-${movie.id}`, ariaLabel: `${word} ${movie.title}`, onclick: () => work(movie.id) }, word);
    return make('li', {},
      make('div', {}, make('strong', {}, movie.title), make('p', {}, movie.description)),
      make('div', { className: 'acts' }, act('Edit', edit), act('Delete', remove, 'quiet danger')));
  }));
  const none = part ? `No title contains “${part}”.` : 'There are no movies yet.';
  const some = part ? `${movies.length}${next || pages.length > 1 ? ' on this page' : ''} with “${part}” in the title.` : '';
  at('movies-said').textContent = movies.length ? some : none;
  at('page-number').textContent = `Page ${pages.length}`;
  at('previous').disabled = pages.length < 2;
  at('next').disabled = !next;
  at('next').onclick = () => {
    pages.push(next);
    loadMovies();
  };
}

at('previous').addEventListener('click', () => {
  pages.pop();
  loadMovies();
});

at('search').addEventListener('input', () => {
  clearTimeout(search.timer);
  search.timer = setTimeout(search, 200);
});

// One movie. What is open here, as it was when it was opened: id and tag are null for a new one.

let edited = { id: null, tag: null };
const editor = at('editor').querySelector('form');

async function read(id) {
  const { answer, headers } = await ask('GET', `/api/movies/${id}`);
  return { id, tag: headers.get('etag'), movie: answer };
}

function openEditor(what, movie) {
  edited = what;
  at('editor-heading').textContent = what.id === null ? 'Add a movie' : `Edit movie ${what.id}`;
  at('title').value = movie.title;
  at('description').value = movie.description;
  settleConflict();
  open('editor');
  at('title').focus();
}

at('add').addEventListener('click', () => openEditor({ id: null, tag: null }, { title: '', description: '' }));

/** What the list shows may be old, so it is read again before it is changed. */
async function opened(id, work) {
  try {
    work(await read(id));
  } catch (error) {
    say(error.message);
    loadMovies();
  }
}

const edit = (id) => opened(id, (current) => openEditor(current, current.movie));

onSubmit(editor, save);

async function save() {
  const json = { title: at('title').value, description: at('description').value };
  const isNew = edited.id === null;
  try {
    if (isNew) await ask('POST', '/api/movies', { json });
    else await ask('PUT', `/api/movies/${edited.id}`, { json, headers: { 'if-match': edited.tag } });
  } catch (error) {
    if (error.status !== 412) throw error;
    return showConflict(await read(edited.id), json);
  }
  at('editor').close();
  say(`${isNew ? 'Added' : 'Saved'} “${json.title}”.`);
  await loadMovies();
}

function showConflict(theirs, mine) {
  const texts = { theirs: theirs.movie, mine };
  for (const side in texts) {
    for (const field of ['title', 'description']) at('conflict').querySelector(`.${side}-${field}`).textContent = texts[side][field];
  }
  at('save').hidden = true;
  at('conflict').hidden = false;
  at('take-theirs').onclick = () => openEditor(theirs, theirs.movie);
  at('keep-mine').onclick = () => {
    // Over what was just shown, and nothing newer.
    edited = theirs;
    settleConflict();
    editor.requestSubmit();
  };
  at('take-theirs').focus();
}

function settleConflict() {
  at('save').hidden = false;
  at('conflict').hidden = true;
}

let removed = null;

function openRemover(current) {
  removed = current;
  at('remover-text').textContent = `“${current.movie.title}” (movie ${current.id}) will be gone for good.`;
  open('remover');
}

const remove = (id) => opened(id, openRemover);

onSubmit(at('remover').querySelector('form'), async () => {
  try {
    await ask('DELETE', `/api/movies/${removed.id}`, { headers: { 'if-match': removed.tag } });
  } catch (error) {
    if (error.status !== 412) throw error;
    openRemover(await read(removed.id));
    throw new Problem(412, 'Somebody else has just changed this movie. Above is what it is now; nothing has been deleted.');
  }
  at('remover').close();
  say(`Deleted “${removed.movie.title}”.`);
  await loadMovies();
});

const isWord = () => at('word').value.trim().toLowerCase() === 'delete';

at('delete-all').addEventListener('click', () => {
  at('word').value = '';
  at('empty').disabled = true;
  open('emptier');
});

at('word').addEventListener('input', () => { at('empty').disabled = !isWord(); });

onSubmit(at('emptier').querySelector('form'), async () => {
  if (!isWord()) return;
  const { answer } = await ask('DELETE', '/api/movies');
  at('emptier').close();
  say(`Deleted all movies: ${answer.deleted.toLocaleString('en')}.`);
  await search();
});

// Orders

/** Orders of this page that were not seen among the recorded ones yet: their message ids, and what shows them. */
const pending = new Map();
/** The order whose outcome is not known, so that a repeat of it has the same key. */
let attempt = null;

function newKey() {
  // randomUUID is for HTTPS and localhost alone.
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return `console-${Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('')}`;
}

onSubmit(at('order'), async () => {
  const form = at('order');
  const json = {};
  for (const field of form.querySelectorAll('input')) json[field.name] = field.value.trim();
  const text = JSON.stringify(json);
  if (attempt?.text !== text) attempt = { text, key: newKey() };
  try {
    const { answer } = await ask('POST', '/api/billing', { json, headers: { 'idempotency-key': attempt.key } });
    attempt = null;
    form.reset();
    at('user').focus();
    showPlaced(answer.message_id);
    loadOrders();
  } catch (error) {
    if (error.status && error.status < 500) attempt = null;
    else error.message += ' Place it again as it is: it has a key, and is recorded once at most.';
    throw error;
  }
});

function showPlaced(id) {
  const state = make('span', {}, 'posted');
  const row = make('li', {}, make('code', {}, id), ' ', state);
  row.dataset.state = 'degraded';
  at('placed').prepend(row);
  while (at('placed').children.length > 3) at('placed').lastChild.remove();
  if (known?.orders_readable) pending.set(id, { row, state });
  // Who has placed many waits for the latest of them.
  if (pending.size > 20) pending.delete(pending.keys().next().value);
}

let recorded = [];
let older = null;
let ordersBusy = false;
let ordersPause = 0;

/** The newest page, in front of what is shown already. */
async function loadOrders() {
  if (!known?.orders_readable) {
    at('orders-said').textContent = known ? 'They are not shown through this gateway (EXPOSE_ORDERS); billing-api has them.' : '';
    return;
  }
  if (ordersBusy || Date.now() < ordersPause) return;
  ordersBusy = true;
  try {
    const { answer, headers } = await ask('GET', '/api/orders?order=desc&limit=10');
    const shown = new Set(recorded.map((order) => order.id));
    const joins = recorded.length < 500 && answer.some((order) => shown.has(order.id));
    if (!joins) older = nextPage(headers);
    recorded = joins ? [...answer.filter((order) => !shown.has(order.id)), ...recorded] : answer;
    showOrders();
    for (const order of answer) arrived(order);
  } catch (error) {
    if (error.status === 429) ordersPause = Date.now() + error.retryAfter * 1000;
    else if (error.status !== 401) at('orders-said').textContent = error.message;
    // They may be read with another key; with this one there is nothing to wait for.
    if (error.status === 403) pending.clear();
  }
  ordersBusy = false;
}

function arrived(order) {
  const mine = pending.get(order.message_id);
  if (!mine) return;
  mine.state.textContent = `recorded as order ${order.id}`;
  mine.row.dataset.state = 'up';
  pending.delete(order.message_id);
}

const moment = new Intl.DateTimeFormat(undefined, { dateStyle: 'medium', timeStyle: 'medium' });

function showOrders() {
  at('orders-said').textContent = recorded.length ? '' : 'None is recorded yet.';
  at('recorded').hidden = !recorded.length;
  at('older').hidden = !older;
  fill(at('orders-list'), recorded.map((order) => {
    const number = (text) => make('td', { className: 'number' }, String(text));
    const time = make('time', { dateTime: order.created_at }, moment.format(new Date(order.created_at)));
    return make('tr', {}, number(order.id), make('td', { title: order.user_id }, order.user_id), number(order.number_of_items), number(order.total_amount), make('td', {}, time));
  }));
}

at('older').addEventListener('click', async () => {
  try {
    const { answer, headers } = await ask('GET', older);
    recorded.push(...answer);
    older = nextPage(headers);
    showOrders();
  } catch (error) {
    at('orders-said').textContent = error.message;
  }
});

// The begin

function reload() {
  recorded = [];
  older = known = null;
  showOrders();
  search();
}

showKey();
search();
