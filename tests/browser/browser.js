// Chromium with the console. The tests fail if the page runs code that its policy forbids, sends a request to another
// host, or logs an error.
'use strict';

const assert = require('node:assert');
const { chromium } = require('playwright-core');

const FLAGS = [
  '--no-sandbox', // Tests may run as root, for whom Chromium has no sandbox.
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
];

/** Chromium logs each answer from 400 on, and the tests expect refusals. */
const LOG_OF_A_REFUSAL = /^Failed to load resource: the server responded with a status of 4\d\d/;
/** The answer to a request for a list between the end of a database and the status that shows it. */
const LOG_OF_AN_OUTAGE = /^Failed to load resource: the server responded with a status of 503/;
const LOG_OF_AN_ABSENT_GATEWAY = /^Failed to load resource: net::ERR_(CONNECTION_REFUSED|CONNECTION_RESET|EMPTY_RESPONSE|FAILED)/;

/** A browser with an empty profile of its own; playwright removes it. */
function launch() {
  return chromium.launch({ executablePath: process.env.CHROMIUM, headless: true, args: FLAGS });
}

/** A page with the console at that address. `options` are those of a browser context; with `outage` a database may stop. */
async function openConsole(browser, url, { outage = false, ...options } = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, locale: 'en-GB', timezoneId: 'UTC', ...options });
  const faults = [];
  const host = new URL(url).host;
  context.on('request', (request) => {
    const asked = new URL(request.url());
    if (asked.protocol !== 'data:' && asked.host !== host) faults.push(`asked ${request.url()}`);
  });
  const page = await context.newPage();
  page.on('pageerror', (error) => faults.push(`threw ${error.stack}`));
  page.on('console', (message) => {
    const text = message.text();
    const expected = LOG_OF_A_REFUSAL.test(text) || LOG_OF_AN_ABSENT_GATEWAY.test(text) || (outage && LOG_OF_AN_OUTAGE.test(text));
    if (['error', 'warning'].includes(message.type()) && !expected) faults.push(`said ${text}`);
  });
  await page.addInitScript(() => {
    addEventListener('securitypolicyviolation', (event) => console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`));
  });
  await page.goto(url);
  const close = async () => {
    await context.close();
    assert.deepStrictEqual(faults, []);
  };
  return { page, close };
}

module.exports = { launch, openConsole };
