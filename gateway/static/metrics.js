// Reads the Prometheus text of /metrics, and finds rates and percentiles between two readings.
// Pure: no page, no clock.

const SAMPLE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;
const ESCAPES = { n: "\n", '"': '"', "\\": "\\" };

// [{name, labels, value}] of the whole text.
export function parse(text) {
  const samples = [];
  for (const line of text.split("\n")) {
    if (line.startsWith("#")) continue;
    const found = SAMPLE.exec(line);
    if (!found) continue;
    const labels = {};
    for (const [, key, value] of (found[2] ?? "").matchAll(LABEL)) {
      labels[key] = value.replace(/\\(.)/g, (_, sign) => ESCAPES[sign] ?? sign);
    }
    samples.push({ name: found[1], labels, value: number(found[3]) });
  }
  return samples;
}

export function number(text) {
  if (text === "+Inf") return Infinity;
  return text === "-Inf" ? -Infinity : Number(text);
}

// What one model has counted so far.
export function reading(samples, model, at) {
  const of = { at, ends: {}, latency: new Map(), rows: 0, batches: 0, tokens: {}, first: new Map() };
  for (const { name, labels, value } of samples) {
    if (labels.model !== model) continue;
    if (name === "penstock_requests_total") of.ends[labels.end] = value;
    else if (name === "penstock_request_seconds_bucket") of.latency.set(number(labels.le), value);
    else if (name === "penstock_tokens_total") of.tokens[labels.kind] = value;
    else if (name === "penstock_first_token_seconds_bucket") of.first.set(number(labels.le), value);
    else if (name === "penstock_batch_rows_sum") of.rows = value;
    else if (name === "penstock_batch_rows_count") of.batches = value;
  }
  return of;
}

// Rates per second and times in seconds between two readings; null where nothing happened. A
// counter that has shrunk was started again: from zero.
export function between(before, after) {
  const seconds = Math.max(after.at - before.at, 1e-3);
  const grown = (was, now) => (now >= (was ?? 0) ? now - (was ?? 0) : now);
  const rate = (end) => grown(before.ends[end], after.ends[end] ?? 0) / seconds;
  const batches = grown(before.batches, after.batches);
  const token = (kind) => grown(before.tokens[kind], after.tokens[kind] ?? 0);
  const between = (of) =>
    [...after[of]]
      .sort(([left], [right]) => left - right)
      .map(([bound, count]) => [bound, grown(before[of].get(bound), count)]);
  const buckets = between("latency");
  return {
    done: rate("done"),
    failed: rate("failed"),
    p50: percentile(buckets, 0.5),
    p99: percentile(buckets, 0.99),
    tokens: token("completion") / seconds,
    cached: token("prompt") ? token("cached") / token("prompt") : null,
    first: percentile(between("first"), 0.5),
    batch: batches ? grown(before.rows, after.rows) / batches : null,
  };
}

// Of cumulative buckets [[bound, count] …], linear within a bucket; null without any count.
export function percentile(buckets, share) {
  const total = buckets.at(-1)?.[1] ?? 0;
  if (!total) return null;
  const wanted = share * total;
  let low = 0;
  let below = 0;
  for (const [bound, count] of buckets) {
    if (count >= wanted) {
      if (bound === Infinity) return low;
      return low + ((bound - low) * (wanted - below)) / (count - below || 1);
    }
    [low, below] = [bound, count];
  }
  return low;
}
