'use strict';
// Says which arguments of a queue, and which policies in force for it, make RabbitMQ delete orders.
// Standard input has three lines of JSON, as the management API answers them: the queue, the
// policies, the operator policies.

const [queue, ...policies] = require('fs').readFileSync(0, 'utf8').trim().split('\n').map((line) => JSON.parse(line));

const effects = {
  'message-ttl': () => 'orders that wait for longer are deleted',
  expires: () => 'the queue is deleted, with its orders, when no consumer uses it for so long',
  'max-length': full,
  'max-length-bytes': full,
  'delivery-limit': (limit) => limit['delivery-limit'] < 2147483647 && 'an order that was given back so often is deleted',
};

function full(limit) {
  return !`${limit.overflow}`.startsWith('reject-publish') && 'the oldest orders are deleted when the queue is full (no overflow reject-publish)';
}

/** Of several policies that match, the one with the highest priority is in force. */
function inForce(list) {
  const suits = ({ pattern, 'apply-to': to }) => to !== 'exchanges' && new RegExp(pattern).test(queue.name);
  return list.filter(suits).sort((a, b) => b.priority - a.priority).slice(0, 1);
}

const plain = Object.entries(queue.arguments).map(([name, value]) => [name.replace(/^x-/, ''), value]);
const sources = [['an argument of the queue', Object.fromEntries(plain)]];
for (const list of policies) {
  for (const { name, definition } of inForce(list)) sources.push([`the policy ${name}`, definition]);
}
// What happens to a full queue may be said by one, and when it is full by another.
const { overflow } = Object.assign({}, ...sources.map(([, limits]) => limits));
for (const [source, limits] of sources) {
  for (const name of Object.keys(limits)) {
    const effect = effects[name]?.({ overflow, ...limits });
    if (effect) console.log(`${source}, ${name}=${limits[name]}: ${effect}`);
  }
}
