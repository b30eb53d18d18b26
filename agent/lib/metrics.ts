/** Kinds of metric families, as the text format names them. */
export type MetricType = "counter" | "gauge" | "histogram";

/** One line of an exposition. */
export interface Sample {
  /** Only in histograms. */
  suffix?: "_bucket" | "_sum" | "_count";
  labels: Readonly<Record<string, string>>;
  value: number;
  /** Unix ms at which the value was read; absent: at the time of the scrape. */
  timestampMs?: number;
}

/** All samples of one name. */
export interface MetricFamily {
  name: string;
  help: string;
  type: MetricType;
  samples: Iterable<Sample>;
}

/** Values of a family's labels, every one of them. */
export type Labels<L extends string> = Readonly<Record<L, string>>;

/** Only grows. */
export interface Counter<L extends string = never> {
  /** @param by default 1 */
  inc(labels: Labels<L>, by?: number): void;
  remove(labels: Labels<L>): void;
}

export interface Gauge<L extends string = never> {
  set(labels: Labels<L>, value: number): void;
  /** @param by may be negative; default 1 */
  add(labels: Labels<L>, by?: number): void;
  remove(labels: Labels<L>): void;
}

export interface Histogram<L extends string = never> {
  observe(labels: Labels<L>, value: number): void;
  remove(labels: Labels<L>): void;
}

/** client-go's and Prometheus' default buckets: seconds of a request. */
export const defaultBuckets: readonly number[] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10];

/** What a collector gives: families whose values are read at the time of the scrape. */
export type Collector = () => Iterable<MetricFamily> | Promise<Iterable<MetricFamily>>;

/**
 * Metrics of the agent itself. Families keep the order of their registration. Each name is registered once: a second
 * registration throws, as it is a mistake in the program.
 */
export class MetricsRegistry {
  readonly #collectors = new Map<string, Collector>();

  /** A family without labels shows 0 from the start; one with labels shows a series once it was touched. */
  counter<L extends string = never>(name: string, help: string, labels: readonly L[] = []): Counter<L> {
    return this.#values("counter", name, help, labels);
  }

  gauge<L extends string = never>(name: string, help: string, labels: readonly L[] = []): Gauge<L> {
    return this.#values("gauge", name, help, labels);
  }

  /** @param buckets upper bounds, ascending, without +Inf */
  histogram<L extends string = never>(
    name: string,
    help: string,
    buckets: readonly number[],
    labels: readonly L[] = [],
  ): Histogram<L> {
    const series = new Map<string, HistogramSeries>();
    const at = (values: Labels<L>) => {
      const key = keyOf(labels, values);
      let found = series.get(key);
      if (found === undefined) {
        found = { labels: { ...values }, counts: new Array<number>(buckets.length + 1).fill(0), sum: 0 };
        series.set(key, found);
      }
      return found;
    };
    if (labels.length === 0) at({} as Labels<L>);
    this.collect(name, () => [
      { name, help, type: "histogram", samples: [...series.values()].flatMap((one) => histogramSamples(one, buckets)) },
    ]);
    return {
      observe: (values, value) => {
        const one = at(values);
        const place = buckets.findIndex((bound) => value <= bound);
        const i = place < 0 ? buckets.length : place;
        one.counts[i] = (one.counts[i] ?? 0) + 1;
        one.sum += value;
      },
      remove: (values) => void series.delete(keyOf(labels, values)),
    };
  }

  /** Adds families that are read at the time of the scrape. `name` stands for all of them and must be new. */
  collect(name: string, collector: Collector): void {
    if (this.#collectors.has(name)) throw new Error(`metric ${name} is registered twice`);
    this.#collectors.set(name, collector);
  }

  /** Everything, as it is now. Rejects with what a collector threw. */
  async families(): Promise<MetricFamily[]> {
    const all = await Promise.all([...this.#collectors.values()].map(async (collector) => await collector()));
    return all.flatMap((families) => [...families]);
  }

  #values<L extends string>(
    type: "counter" | "gauge",
    name: string,
    help: string,
    labels: readonly L[],
  ): Counter<L> & Gauge<L> {
    const series = new Map<string, { labels: Labels<L>; value: number }>();
    const at = (values: Labels<L>) => {
      const key = keyOf(labels, values);
      let found = series.get(key);
      if (found === undefined) {
        found = { labels: { ...values }, value: 0 };
        series.set(key, found);
      }
      return found;
    };
    if (labels.length === 0) at({} as Labels<L>);
    this.collect(name, () => [{ name, help, type, samples: [...series.values()].map((one) => ({ ...one })) }]);
    const add = (values: Labels<L>, by = 1) => {
      at(values).value += by;
    };
    return {
      inc: add,
      add,
      set: (values, value) => {
        at(values).value = value;
      },
      remove: (values) => void series.delete(keyOf(labels, values)),
    };
  }
}

interface HistogramSeries {
  labels: Readonly<Record<string, string>>;
  /** Per bucket, not cumulative; the last is above all bounds. */
  counts: number[];
  sum: number;
}

function histogramSamples({ labels, counts, sum }: HistogramSeries, buckets: readonly number[]): Sample[] {
  let total = 0;
  const lines: Sample[] = counts.map((count, i) => {
    total += count;
    const bound = buckets[i];
    const le = bound === undefined ? "+Inf" : String(bound);
    return { suffix: "_bucket", labels: { ...labels, le }, value: total };
  });
  return [...lines, { suffix: "_sum", labels, value: sum }, { suffix: "_count", labels, value: total }];
}

function keyOf<L extends string>(names: readonly L[], values: Labels<L>): string {
  return names.map((name) => values[name]).join("\0");
}
