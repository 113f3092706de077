import assert from 'node:assert/strict';
import test from 'node:test';

import signature from '../dist/nodes/shared/signature.js';

// The vector that the reference libraries of Standard Webhooks test themselves with.
const secret = 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw';
const headers = {
	'webhook-id': 'msg_p5jXN8AQM9LWM0D4loKWxJek',
	'webhook-timestamp': '1614265330',
	'webhook-signature': 'v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=',
};
const body = Buffer.from('{"test": 2432232314}');
const now = 1_614_265_330_000;
const objection = (changed, text = body, at = now) =>
	signature.objection(secret, { ...headers, ...changed }, text, at);

test('what is signed is taken, also beside another signature and without the prefix of the secret', () => {
	assert.equal(objection({}), undefined);
	assert.equal(objection({ 'webhook-signature': `v1,AAAA ${headers['webhook-signature']}` }), undefined);
	assert.equal(signature.objection(secret.slice('whsec_'.length), headers, body, now), undefined);
});

test('what is not signed, old, of another version or changed is refused, and said why', () => {
	assert.match(objection({ 'webhook-signature': undefined }), /not signed/);
	assert.match(objection({}, body, now + 301_000), /from now/);
	assert.match(objection({}, body, now - 301_000), /from now/);
	assert.match(objection({ 'webhook-timestamp': '1614265330.5' }), /from now/);
	assert.match(objection({ 'webhook-id': 'msg_other' }), /does not fit/);
	assert.match(objection({}, Buffer.from('{"test": 2432232315}')), /does not fit/);
	assert.match(objection({ 'webhook-signature': headers['webhook-signature'].replace('v1,', 'v2,') }), /does not fit/);
});
