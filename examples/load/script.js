// k6 against Penstock's demo (`make demo` leaves it running).
//
//   k6 run examples/load/script.js
//   k6 run -e URL=http://127.0.0.1:8080 -e RATE=500 examples/load/script.js
//
// An open loop: requests have intended times, whatever the answers take.
import http from 'k6/http';
import { check } from 'k6';

const url = __ENV.URL || 'http://127.0.0.1:8080';
const rate = Number(__ENV.RATE || 200);

export const options = {
  scenarios: {
    digits: {
      executor: 'constant-arrival-rate',
      rate: rate,
      timeUnit: '1s',
      duration: '30s',
      preAllocatedVUs: 64,
      maxVUs: 1024,
    },
  },
  thresholds: {
    checks: ['rate>0.999'],
    http_req_duration: ['p(99)<50'],
  },
};

export default function () {
  const image = Array.from({ length: 64 }, () => Math.floor(Math.random() * 17));
  const body = JSON.stringify({
    inputs: [{ name: 'image', shape: [1, 64], datatype: 'FP32', data: image }],
    outputs: [{ name: 'digit' }],
  });
  const answer = http.post(`${url}/v2/models/digits/infer`, body, {
    headers: { 'content-type': 'application/json' },
  });
  check(answer, {
    answered: (r) => r.status === 200,
    'is a digit': (r) => {
      const digit = r.status === 200 ? r.json('outputs.0.data.0') : -1;
      return digit >= 0 && digit <= 9;
    },
  });
}
