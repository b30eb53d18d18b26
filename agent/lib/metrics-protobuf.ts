import { type MetricFamily, type MetricType, type Sample, sortedLabels } from "./metrics.ts";

/** The content type of {@link encodeMetrics}: a varint length before each `io.prometheus.client.MetricFamily`. */
export const metricsProtobufType =
  "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";

// io.prometheus.client.MetricType and the Metric's field that holds such a value.
const kinds: Record<MetricType, { type: number; field: number }> = {
  counter: { type: 0, field: 3 },
  gauge: { type: 1, field: 2 },
  histogram: { type: 4, field: 7 },
};

// After so many series of one family the caller is given a chance to yield: a family is one message, however long.
const seriesPerPiece = 100;

/**
 * Families as delimited protobuf. The pieces are to be written one after the other; an empty one only says that the
 * event loop may be given a turn here. As with Go's client, the bucket of +Inf is left out: the count says the same.
 */
export function* encodeMetrics(families: Iterable<MetricFamily>): Generator<Uint8Array, void, void> {
  for (const { name, help, type, samples } of families) {
    const family = new Encoder();
    family.string(1, name);
    family.string(2, help);
    family.uint(3, kinds[type].type);
    let count = 0;
    for (const series of seriesOf(samples)) {
      family.message(4, () => metric(family, type, series));
      count += 1;
      if (count % seriesPerPiece === 0) yield nothing;
    }
    if (count === 0) continue;
    const body = family.bytes();
    const length = new Encoder();
    length.varint(body.length);
    yield length.bytes();
    yield body;
  }
}

const nothing = new Uint8Array(0);

interface Series {
  /** The value; of a histogram the count, which comes after its buckets and sum. */
  sample: Sample;
  buckets: readonly Sample[];
  sum: number;
}

/** The lines that belong together: one of a counter or gauge, all of a histogram's series. */
function* seriesOf(samples: Iterable<Sample>): Generator<Series, void, void> {
  let buckets: Sample[] = [];
  let sum = 0;
  for (const sample of samples) {
    if (sample.suffix === "_bucket") buckets.push(sample);
    else if (sample.suffix === "_sum") sum = sample.value;
    else {
      yield { sample, buckets, sum };
      buckets = [];
    }
  }
}

function metric(to: Encoder, type: MetricType, { sample, buckets, sum }: Series): void {
  const { timestampMs, value } = sample;
  const labels = sortedLabels(sample.labels);
  for (const name in labels) {
    to.message(1, () => {
      to.string(1, name);
      to.string(2, labels[name] ?? "");
    });
  }
  to.message(kinds[type].field, () => {
    if (type !== "histogram") return to.double(1, value);
    to.uint(1, value);
    to.double(2, sum);
    for (const bucket of buckets) {
      if (bucket.le === undefined || bucket.le === Number.POSITIVE_INFINITY) continue;
      const { le } = bucket;
      to.message(3, () => {
        to.uint(1, bucket.value);
        to.double(2, le);
      });
    }
  });
  if (timestampMs !== undefined) to.uint(6, Math.round(timestampMs));
}

const bytesAtFirst = 512;

/** Writes protobuf fields into a buffer that grows. */
class Encoder {
  #buffer = Buffer.allocUnsafe(bytesAtFirst);
  #length = 0;

  bytes(): Uint8Array {
    return this.#buffer.subarray(0, this.#length);
  }

  /** @param value a whole number, not negative, up to 2^53 */
  varint(value: number): void {
    this.#room(10);
    let rest = value;
    while (rest >= 0x80) {
      this.#buffer[this.#length++] = (rest % 0x80) | 0x80;
      rest = Math.floor(rest / 0x80);
    }
    this.#buffer[this.#length++] = rest;
  }

  uint(field: number, value: number): void {
    this.varint(field << 3);
    this.varint(value);
  }

  double(field: number, value: number): void {
    this.varint((field << 3) | 1);
    this.#room(8);
    this.#length = this.#buffer.writeDoubleLE(value, this.#length);
  }

  string(field: number, text: string): void {
    this.varint((field << 3) | 2);
    const bytes = Buffer.byteLength(text);
    this.varint(bytes);
    this.#room(bytes);
    this.#length += this.#buffer.write(text, this.#length);
  }

  /** A nested message, written by `write` in place; most are so short that their length takes the one byte kept for it. */
  message(field: number, write: () => void): void {
    this.varint((field << 3) | 2);
    this.#room(1);
    const at = this.#length;
    this.#length += 1;
    write();
    const end = this.#length;
    const bytes = end - at - 1;
    const extra = varintBytes(bytes) - 1;
    this.#room(extra);
    if (extra > 0) this.#buffer.copyWithin(at + 1 + extra, at + 1, end);
    this.#length = at;
    this.varint(bytes);
    this.#length = end + extra;
  }

  #room(bytes: number): void {
    if (this.#length + bytes <= this.#buffer.length) return;
    const larger = Buffer.allocUnsafe(Math.max(this.#buffer.length * 2, this.#length + bytes));
    this.#buffer.copy(larger);
    this.#buffer = larger;
  }
}

function varintBytes(value: number): number {
  let count = 1;
  for (let rest = Math.floor(value / 0x80); rest > 0; rest = Math.floor(rest / 0x80)) count += 1;
  return count;
}
