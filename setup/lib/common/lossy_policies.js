'use strict';
// Prints which properties and arguments of a queue, and which policies in force for it, make RabbitMQ delete
// orders. Names and values may be any text. Standard input has three lines of JSON, which are answers of the management
// API: the queue, the policies, the operator policies.

const [queue, ...policies] = require('fs').readFileSync(0, 'utf8').trim().split('\n').map((line) => JSON.parse(line));

/** The properties with which a queue loses orders, and the effect of each. */
const properties = {
  durable: (value) => value === false && 'the queue is deleted, with its orders, when RabbitMQ restarts',
  exclusive: (value) => value === true && 'the queue is deleted, with its orders, when its connection ends',
  auto_delete: (value) => value === true && 'the queue is deleted, with its orders, when its last consumer ends',
};

const effects = {
  'message-ttl': () => 'orders that wait longer than that are deleted',
  expires: () => 'the queue is deleted, with its orders, when no consumer has used it for that time',
  'max-length': full,
  'max-length-bytes': full,
  'delivery-limit': (limit) => limit['delivery-limit'] < 2147483647 && 'an order that was returned to the queue that often is deleted',
};

function full(limit) {
  return !/^"reject-publish/.test(JSON.stringify(limit.overflow)) && 'the oldest orders are deleted when the queue is full (no overflow reject-publish)';
}

/** Of several policies that match, the one with the highest priority is in force. */
function inForce(list) {
  const matches = ({ pattern, 'apply-to': to }) => to !== 'exchanges' && new RegExp(pattern).test(queue.name);
  return list.filter(matches).sort((a, b) => b.priority - a.priority).slice(0, 1);
}

const plain = Object.entries(queue.arguments).map(([name, value]) => [name.replace(/^x-/, ''), value]);
const sources = [['an argument of the queue', Object.fromEntries(plain)]];
for (const [name, effect] of Object.entries(properties)) warn('a property of the queue', name, queue[name], effect(queue[name]));
for (const list of policies) {
  for (const { name, definition } of inForce(list)) sources.push([`the policy ${name}`, definition]);
}
// One source may have the overflow behaviour of a queue, and another its limit.
const overflow = sources.map(([, limits]) => limits).findLast((limits) => Object.hasOwn(limits, 'overflow'))?.overflow;
for (const [source, limits] of sources) {
  for (const name of Object.keys(limits)) {
    if (Object.hasOwn(effects, name)) warn(source, name, limits[name], effects[name]({ overflow, ...limits }));
  }
}

function warn(source, name, value, effect) {
  if (effect) console.log(plainText(`${source}, ${name}=${JSON.stringify(value)}: ${effect}`));
}

/** Escapes characters that control a terminal or change the direction of the text. */
function plainText(text) {
  return text.replace(/[\p{C}\u2028\u2029]/gu, (character) => `\\u{${character.codePointAt(0).toString(16)}}`);
}
