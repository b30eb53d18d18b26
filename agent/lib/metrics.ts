/** Kinds of metric families, as the text format names them. */
export type MetricType = "counter" | "gauge" | "histogram";

/** One line of an exposition. */
export interface Sample {
  /** Only in histograms. A series' lines follow each other: buckets ascending, sum, count. */
  suffix?: "_bucket" | "_sum" | "_count";
  /** In any order; shown sorted by name. */
  labels: Readonly<Record<string, string>>;
  /** Upper bound of a `_bucket`; shown as the last label. */
  le?: number;
  value: number;
  /** Unix ms at which the value was read; absent: at the time of the scrape. */
  timestampMs?: number;
}

/** All samples of one name. Without a sample, nothing of it is shown. */
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
  /** @param by not negative (ignored otherwise); by default 1. 0 makes the series appear. */
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

/**
 * Series that one family keeps. Label values that come from outside (reasons, exit codes, hosts) could otherwise fill the
 * memory; what exceeds it is not counted. Far above what a node of 500 pods makes.
 */
export const seriesPerFamilyMax = 5_000;

/** What a collector gives: families whose values are read at the time of the scrape. */
export type Collector = () => Iterable<MetricFamily> | Promise<Iterable<MetricFamily>>;

/**
 * Metrics of the agent itself. Each name is registered once: a second registration throws, as it is a mistake in the
 * program. Updates cost a map look-up; values are only put into words when they are read.
 */
export class MetricsRegistry {
  readonly #collectors = new Map<string, Collector>();

  /** A family without labels shows 0 from the start; one with labels shows a series once it was touched. */
  counter<L extends string = never>(name: string, help: string, labels: readonly L[] = []): Counter<L> {
    const values = this.#values("counter", name, help, labels);
    return { inc: (of, by = 1) => (by >= 0 ? values.add(of, by) : undefined), remove: values.remove };
  }

  gauge<L extends string = never>(name: string, help: string, labels: readonly L[] = []): Gauge<L> {
    return this.#values("gauge", name, help, labels);
  }

  /** A gauge without labels that is read at the time of the scrape. @param read undefined: not known, and not shown */
  gaugeOf(name: string, help: string, read: () => number | undefined): void {
    this.collect(name, () => {
      const value = read();
      return [{ name, help, type: "gauge", samples: value === undefined ? [] : [{ labels: {}, value }] }];
    });
  }

  /** @param buckets upper bounds, ascending, without +Inf */
  histogram<L extends string = never>(
    name: string,
    help: string,
    buckets: readonly number[],
    labels: readonly L[] = [],
  ): Histogram<L> {
    const series = new SeriesMap(labels, (own): HistogramSeries => {
      return { labels: own, counts: new Array<number>(buckets.length + 1).fill(0), sum: 0 };
    });
    this.collect(name, () => [{ name, help, type: "histogram", samples: histogramSamples(series.values(), buckets) }]);
    return {
      observe: (values, value) => {
        const one = series.at(values);
        const i = bucketOf(buckets, value);
        one.counts[i] = (one.counts[i] ?? 0) + 1;
        one.sum += value;
      },
      remove: (values) => series.remove(values),
    };
  }

  /** Adds families that are read at the time of the scrape. `name` stands for all of them and must be new. */
  collect(name: string, collector: Collector): void {
    if (this.#collectors.has(name)) throw new Error(`metric ${name} is registered twice`);
    this.#collectors.set(name, collector);
  }

  /** Names registered so far. */
  get size(): number {
    return this.#collectors.size;
  }

  /**
   * Everything, families in the order of their names. The samples of our own counters, gauges and histograms are read
   * while they are iterated, so that this costs little however many there are. Rejects with what a collector threw.
   */
  async families(): Promise<MetricFamily[]> {
    const all = await Promise.all([...this.#collectors.values()].map(async (collector) => await collector()));
    return all.flatMap((families) => [...families]).sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  #values<L extends string>(type: "counter" | "gauge", name: string, help: string, labels: readonly L[]): Gauge<L> {
    const series = new SeriesMap(labels, (own): ValueSeries => ({ labels: own, value: 0 }));
    this.collect(name, () => [{ name, help, type, samples: series.values() }]);
    return {
      add: (values, by = 1) => {
        series.at(values).value += by;
      },
      set: (values, value) => {
        series.at(values).value = value;
      },
      remove: (values) => series.remove(values),
    };
  }
}

/** The labels by name, as every format shows them. The same object if they are in order already. */
export function sortedLabels(labels: Readonly<Record<string, string>>): Readonly<Record<string, string>> {
  let before = "";
  for (const name in labels) {
    if (name < before) return Object.fromEntries(Object.entries(labels).sort(([a], [b]) => (a < b ? -1 : 1)));
    before = name;
  }
  return labels;
}

interface ValueSeries {
  labels: Readonly<Record<string, string>>;
  value: number;
}

interface HistogramSeries {
  labels: Readonly<Record<string, string>>;
  /** Per bucket, not cumulative; the last is above all bounds. */
  counts: number[];
  sum: number;
}

/** The series of one family by the values of their labels. */
class SeriesMap<L extends string, T> {
  readonly #names: readonly L[];
  readonly #sorted: readonly L[];
  readonly #make: (labels: Readonly<Record<string, string>>) => T;
  readonly #series = new Map<string, T>();

  constructor(names: readonly L[], make: (labels: Readonly<Record<string, string>>) => T) {
    this.#names = names;
    this.#sorted = [...names].sort();
    this.#make = make;
    if (names.length === 0) this.#series.set("", make({}));
  }

  /** The series, made if it is new. At the bound: one that nobody sees. */
  at(values: Labels<L>): T {
    const key = this.#key(values);
    let found = this.#series.get(key);
    if (found === undefined) {
      const labels: Record<string, string> = {};
      for (const name of this.#sorted) labels[name] = values[name];
      found = this.#make(labels);
      if (this.#series.size < seriesPerFamilyMax) this.#series.set(key, found);
    }
    return found;
  }

  remove(values: Labels<L>): void {
    this.#series.delete(this.#key(values));
  }

  values(): Iterable<T> {
    return this.#series.values();
  }

  // Lengths keep ("a", "bc") and ("ab", "c") apart, whatever characters the values have.
  #key(values: Labels<L>): string {
    const [first, ...others] = this.#names;
    if (first === undefined) return "";
    let key: string = values[first];
    for (const name of others) key = `${key.length}:${key}${values[name]}`;
    return key;
  }
}

function bucketOf(buckets: readonly number[], value: number): number {
  let i = 0;
  while (i < buckets.length && !(value <= (buckets[i] ?? 0))) i += 1;
  return i;
}

// The lines of one series are made in one go: an observation in between must not make them disagree.
function* histogramSamples(series: Iterable<HistogramSeries>, buckets: readonly number[]): Generator<Sample> {
  for (const { labels, counts, sum } of series) {
    let total = 0;
    const lines: Sample[] = counts.map((count, i) => {
      total += count;
      return { suffix: "_bucket", labels, le: buckets[i] ?? Number.POSITIVE_INFINITY, value: total };
    });
    yield* [...lines, { suffix: "_sum", labels, value: sum }, { suffix: "_count", labels, value: total }];
  }
}
