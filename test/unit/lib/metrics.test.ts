import { describe, expect, test } from "vitest";
import { defaultBuckets, type MetricFamily, MetricsRegistry, seriesPerFamilyMax } from "../../../agent/lib/metrics.ts";
import { floatText, renderMetrics } from "../../../agent/lib/metrics-text.ts";

async function textOf(registry: MetricsRegistry): Promise<string> {
  return [...renderMetrics(await registry.families())].join("");
}

const gauge = (samples: MetricFamily["samples"]): MetricFamily => ({ name: "g", help: "h", type: "gauge", samples });

describe("numbers are printed as Go prints them", () => {
  const cases: [number, string][] = [
    [0, "0"],
    [-0, "0"],
    [1, "1"],
    [-1, "-1"],
    [0.1, "0.1"],
    [0.005, "0.005"],
    [0.0001, "0.0001"],
    [0.00001, "1e-05"],
    [1e-8, "1e-08"],
    [123456, "123456"],
    [999999.5, "999999.5"],
    [1e6, "1e+06"],
    [1234567, "1.234567e+06"],
    [1048576, "1.048576e+06"],
    [1.7637e9, "1.7637e+09"],
    [-2.5e6, "-2.5e+06"],
    [1e21, "1e+21"],
    [1e100, "1e+100"],
    [745.0580596923828, "745.0580596923828"],
    [Number.POSITIVE_INFINITY, "+Inf"],
    [Number.NEGATIVE_INFINITY, "-Inf"],
    [Number.NaN, "NaN"],
    [Number.MAX_SAFE_INTEGER, "9.007199254740991e+15"],
  ];
  for (const [value, want] of cases) test(want, () => expect(floatText(value)).toBe(want));
});

test("a family without labels shows 0 from the start, one with labels nothing until it is touched", async () => {
  const registry = new MetricsRegistry();
  registry.counter("a_total", "Counts.");
  registry.counter("b_total", "Counts by kind.", ["kind"]);
  expect(await textOf(registry)).toBe("# HELP a_total Counts.\n# TYPE a_total counter\na_total 0\n");
});

test("labels are shown by name, whatever order they were declared in, and the bucket's bound last", async () => {
  const registry = new MetricsRegistry();
  registry.counter("c_total", "C.", ["verb", "code"]).inc({ verb: "GET", code: "200" }, 2);
  registry.histogram("d_seconds", "D.", [0.1, 1e6], ["zone"]).observe({ zone: "a" }, 0.1);
  expect(await textOf(registry)).toBe(
    `# HELP c_total C.
# TYPE c_total counter
c_total{code="200",verb="GET"} 2
# HELP d_seconds D.
# TYPE d_seconds histogram
d_seconds_bucket{zone="a",le="0.1"} 1
d_seconds_bucket{zone="a",le="1e+06"} 1
d_seconds_bucket{zone="a",le="+Inf"} 1
d_seconds_sum{zone="a"} 0.1
d_seconds_count{zone="a"} 1
`,
  );
});

test("labels of families read at the scrape are sorted, too", () => {
  const [text] = renderMetrics([gauge([{ labels: { pod: "p", container: "c" }, value: 3, timestampMs: 1700.4 }])]);
  expect(text).toBe('# HELP g h\n# TYPE g gauge\ng{container="c",pod="p"} 3 1700\n');
});

test("text in labels and help cannot break out of its line", () => {
  const hostile = 'a"} 1\nevil_total 9\\';
  const [text = ""] = renderMetrics([{ ...gauge([{ labels: { l: hostile }, value: 1 }]), help: 'x\\y\n"z"' }]);
  expect(text.split("\n")).toHaveLength(4);
  expect(text).toBe('# HELP g x\\\\y\\n"z"\n# TYPE g gauge\ng{l="a\\"} 1\\nevil_total 9\\\\"} 1\n');
});

test("a histogram counts a value into the first bucket that is large enough, cumulatively", async () => {
  const registry = new MetricsRegistry();
  const histogram = registry.histogram("h", "H.", [1, 2]);
  for (const value of [0, 1, 1.5, 2, 3, Number.NaN]) histogram.observe({}, value);
  expect(await textOf(registry)).toContain(
    'h_bucket{le="1"} 2\nh_bucket{le="2"} 4\nh_bucket{le="+Inf"} 6\nh_sum NaN\nh_count 6\n',
  );
});

test("counters do not go down, gauges do", async () => {
  const registry = new MetricsRegistry();
  const counter = registry.counter("c", "C.");
  counter.inc({}, 2);
  counter.inc({}, -1);
  counter.inc({}, Number.NaN);
  const value = registry.gauge("g", "G.");
  value.set({}, 5);
  value.add({}, -7);
  expect(await textOf(registry)).toContain("\nc 2\n");
  expect(await textOf(registry)).toContain("\ng -2\n");
});

test("series are told apart by each label, also when their values run together", async () => {
  const registry = new MetricsRegistry();
  const counter = registry.counter("c", "C.", ["a", "b", "c"]);
  const values = ["", "x", "1:x", "x\0", "2:xx", "0:"];
  for (const a of values) for (const b of values) for (const c of values) counter.inc({ a, b, c });
  const [family] = await registry.families();
  const samples = [...(family?.samples ?? [])];
  expect(samples).toHaveLength(values.length ** 3);
  expect(samples.every(({ value }) => value === 1)).toBe(true);
});

test("a removed series is gone and starts anew", async () => {
  const registry = new MetricsRegistry();
  const histogram = registry.histogram("h", "H.", defaultBuckets, ["pod"]);
  histogram.observe({ pod: "a" }, 1);
  histogram.remove({ pod: "a" });
  expect(await textOf(registry)).toBe("");
  histogram.observe({ pod: "a" }, 1);
  expect(await textOf(registry)).toContain('h_count{pod="a"} 1');
});

test("label values that never repeat do not fill the memory", async () => {
  const registry = new MetricsRegistry();
  const counter = registry.counter("c", "C.", ["reason"]);
  for (let i = 0; i < seriesPerFamilyMax + 100; i += 1) counter.inc({ reason: String(i) });
  counter.inc({ reason: "0" });
  const [family] = await registry.families();
  const samples = [...(family?.samples ?? [])];
  expect(samples).toHaveLength(seriesPerFamilyMax);
  expect(samples[0]?.value).toBe(2);
});

test("a name is registered once, and families come in the order of their names", async () => {
  const registry = new MetricsRegistry();
  registry.gauge("b", "B.");
  registry.gaugeOf("a", "A.", () => 7);
  registry.gaugeOf("unknown", "Not known now.", () => undefined);
  expect(() => registry.counter("b", "B.")).toThrow("b is registered twice");
  expect(registry.size).toBe(3);
  expect(await textOf(registry)).toBe("# HELP a A.\n# TYPE a gauge\na 7\n# HELP b B.\n# TYPE b gauge\nb 0\n");
});

test("what a collector throws reaches the reader", async () => {
  const registry = new MetricsRegistry();
  registry.collect("bad", () => {
    throw new Error("no /proc");
  });
  await expect(registry.families()).rejects.toThrow("no /proc");
});

test("a large exposition comes in pieces", async () => {
  const registry = new MetricsRegistry();
  const histogram = registry.histogram("rest_client_request_duration_seconds", "H.", defaultBuckets, ["verb"]);
  for (let i = 0; i < 200; i += 1) histogram.observe({ verb: `V${i}` }, i);
  const pieces = [...renderMetrics(await registry.families())];
  expect(pieces.length).toBeGreaterThan(5);
  expect(Math.max(...pieces.map(({ length }) => length))).toBeLessThan(20_000);
  expect(pieces.join("").split("\n").length - 1).toBe(2 + 200 * 14);
});
