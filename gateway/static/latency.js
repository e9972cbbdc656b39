/**
 * Delivery latency and message rate over the last minute. Pure: time comes in as milliseconds.
 *
 * A latency is browser clock minus server clock, so it is only as right as the two agree; `skewed` says when they
 * plainly do not. Bounded: at most `PER_BUCKET` samples in each of `BUCKETS` half seconds, chosen by reservoir, so that
 * a thousand messages a second cost no more than ten.
 */

const BUCKET_MS = 500;
const BUCKETS = 120;
const PER_BUCKET = 32;
const RATE_BUCKETS = 6;
const PLAUSIBLE_MS = 60_000;

export class LatencyWindow {
  #buckets = [];

  /** Counts one message; `sentMs` is when the server got its newest input (Unix ms), or undefined. */
  add(nowMs, sentMs) {
    const bucket = this.#bucket(nowMs);
    bucket.count += 1;
    const latency = nowMs - sentMs;
    if (!Number.isFinite(latency) || Math.abs(latency) > PLAUSIBLE_MS) return;
    bucket.seen += 1;
    if (bucket.samples.length < PER_BUCKET) bucket.samples.push(latency);
    else if (Math.random() * bucket.seen < PER_BUCKET) bucket.samples[Math.floor(Math.random() * PER_BUCKET)] = latency;
  }

  /** `{rate, p50, p95, skewed, line}`: messages per second, ms or null, and one `{p50, max}` or null per half second. */
  read(nowMs) {
    this.#bucket(nowMs);
    const all = this.#buckets.flatMap((bucket) => bucket.samples).sort((a, b) => a - b);
    const complete = this.#buckets.slice(-1 - RATE_BUCKETS, -1);
    const counted = complete.reduce((total, bucket) => total + bucket.count, 0);
    return {
      rate: complete.length ? (counted * 1000) / (complete.length * BUCKET_MS) : 0,
      p50: quantile(all, 0.5),
      p95: quantile(all, 0.95),
      skewed: all.length > 0 && quantile(all, 0.5) < 0,
      line: this.#buckets.map(({ samples }) => {
        const sorted = [...samples].sort((a, b) => a - b);
        return sorted.length ? { p50: quantile(sorted, 0.5), max: sorted.at(-1) } : null;
      }),
    };
  }

  #bucket(nowMs) {
    const start = Math.floor(nowMs / BUCKET_MS) * BUCKET_MS;
    let last = this.#buckets.at(-1);
    if (last && start - last.start > BUCKETS * BUCKET_MS) this.#buckets = [];
    last = this.#buckets.at(-1);
    for (let at = last ? last.start + BUCKET_MS : start; at <= start; at += BUCKET_MS) {
      this.#buckets.push({ start: at, count: 0, seen: 0, samples: [] });
    }
    if (this.#buckets.length > BUCKETS) this.#buckets.splice(0, this.#buckets.length - BUCKETS);
    return this.#buckets.at(-1);
  }
}

/** Nearest-rank quantile of a sorted list; null of an empty one. */
export function quantile(sorted, q) {
  return sorted.length ? sorted[Math.max(0, Math.ceil(q * sorted.length) - 1)] : null;
}
