import { Root, type Type } from "protobufjs";
import { expect, test } from "vitest";
import { type MetricFamily, MetricsRegistry } from "../../../agent/lib/metrics.ts";
import { encodeMetrics } from "../../../agent/lib/metrics-protobuf.ts";

// The public schema, as far as it is used here: https://github.com/prometheus/client_model
const schema = Root.fromJSON({
  nested: {
    MetricFamily: {
      fields: {
        name: { type: "string", id: 1 },
        help: { type: "string", id: 2 },
        type: { type: "MetricType", id: 3 },
        metric: { rule: "repeated", type: "Metric", id: 4 },
      },
    },
    MetricType: { values: { COUNTER: 0, GAUGE: 1, HISTOGRAM: 4 } },
    Metric: {
      fields: {
        label: { rule: "repeated", type: "LabelPair", id: 1 },
        gauge: { type: "Value", id: 2 },
        counter: { type: "Value", id: 3 },
        timestampMs: { type: "int64", id: 6 },
        histogram: { type: "Histogram", id: 7 },
      },
    },
    LabelPair: { fields: { name: { type: "string", id: 1 }, value: { type: "string", id: 2 } } },
    Value: { fields: { value: { type: "double", id: 1 } } },
    Histogram: {
      fields: {
        sampleCount: { type: "uint64", id: 1 },
        sampleSum: { type: "double", id: 2 },
        bucket: { rule: "repeated", type: "Bucket", id: 3 },
      },
    },
    Bucket: { fields: { cumulativeCount: { type: "uint64", id: 1 }, upperBound: { type: "double", id: 2 } } },
  },
});

function decode(families: Iterable<MetricFamily>): unknown[] {
  const type: Type = schema.lookupType("MetricFamily");
  const bytes = Buffer.concat([...encodeMetrics(families)]);
  const found: unknown[] = [];
  for (let at = 0; at < bytes.length; ) {
    let length = 0;
    for (let shift = 0; ; shift += 7) {
      const byte = bytes[at++] ?? 0;
      length |= (byte & 0x7f) << shift;
      if (byte < 0x80) break;
    }
    found.push(type.toObject(type.decode(bytes.subarray(at, at + length)), { longs: Number, enums: String }));
    at += length;
  }
  return found;
}

test("counters, gauges and histograms arrive as Prometheus reads them", async () => {
  const registry = new MetricsRegistry();
  registry.counter("a_total", "Größe", ["z", "b"]).inc({ z: "1", b: "日本" }, 3);
  registry.gauge("b", "B.").set({}, -0.5);
  const histogram = registry.histogram("c", "C.", [1, 2], ["l"]);
  for (const value of [0.5, 1.5, 9]) histogram.observe({ l: "x" }, value);
  histogram.observe({ l: "y" }, 1);
  registry.counter("d_total", "Never touched.", ["l"]);
  expect(decode(await registry.families())).toEqual([
    {
      name: "a_total",
      help: "Größe",
      type: "COUNTER",
      metric: [
        {
          label: [
            { name: "b", value: "日本" },
            { name: "z", value: "1" },
          ],
          counter: { value: 3 },
        },
      ],
    },
    { name: "b", help: "B.", type: "GAUGE", metric: [{ gauge: { value: -0.5 } }] },
    {
      name: "c",
      help: "C.",
      type: "HISTOGRAM",
      metric: [
        {
          label: [{ name: "l", value: "x" }],
          histogram: {
            sampleCount: 3,
            sampleSum: 11,
            bucket: [
              { cumulativeCount: 1, upperBound: 1 },
              { cumulativeCount: 2, upperBound: 2 },
            ],
          },
        },
        {
          label: [{ name: "l", value: "y" }],
          histogram: {
            sampleCount: 1,
            sampleSum: 1,
            bucket: [
              { cumulativeCount: 1, upperBound: 1 },
              { cumulativeCount: 1, upperBound: 2 },
            ],
          },
        },
      ],
    },
  ]);
});

test("long messages, long texts, timestamps and special numbers survive", () => {
  const values = [Number.POSITIVE_INFINITY, 2 ** 53, 1e-300, 0];
  const samples = [1, 100, 126, 127, 128, 129, 1_000, 16_383, 16_384, 70_000].flatMap((length) =>
    values.map((value) => ({ labels: { l: "x".repeat(length), m: "é" }, value, timestampMs: 1_763_720_000_123.4 })),
  );
  const [family] = decode([{ name: "g", help: "", type: "gauge", samples }]) as [{ metric: unknown[] }];
  expect(family.metric).toEqual(
    samples.map(({ labels, value }) => ({
      label: [
        { name: "l", value: labels.l },
        { name: "m", value: "é" },
      ],
      gauge: { value },
      timestampMs: 1_763_720_000_123,
    })),
  );
});

test("a family of any length gives its reader chances to yield", () => {
  const samples = Array.from({ length: 5_000 }, (_, i) => ({ labels: { i: String(i) }, value: i }));
  const pieces = [...encodeMetrics([{ name: "g", help: "", type: "gauge", samples }])];
  expect(pieces.filter(({ length }) => length === 0).length).toBeGreaterThan(20);
});
