// Chromium with the console in it, and an eye on what it should never do: run what the policy
// forbids, ask another host, or complain in its console.
'use strict';

const assert = require('node:assert');
const { chromium } = require('playwright-core');

const FLAGS = [
  '--no-sandbox', // Tests may run as root, where Chromium has none.
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
];

/** A refusal is part of the story: Chromium tells of each answer from 400 on. */
const TOLD_OF_A_REFUSAL = /^Failed to load resource: the server responded with a status of 4\d\d/;
/** What a list answers that is asked for between the end of a database and the status that tells of it. */
const TOLD_OF_AN_OUTAGE = /^Failed to load resource: the server responded with a status of 503/;
const TOLD_OF_A_GATEWAY_THAT_IS_GONE = /^Failed to load resource: net::ERR_(CONNECTION_REFUSED|CONNECTION_RESET|EMPTY_RESPONSE|FAILED)/;

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
    const expected = TOLD_OF_A_REFUSAL.test(text) || TOLD_OF_A_GATEWAY_THAT_IS_GONE.test(text) || (outage && TOLD_OF_AN_OUTAGE.test(text));
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
