import { describe, expect, test } from "vitest";
import { negotiate } from "../../../../agent/server/metrics/negotiate.ts";

const text = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";
const protobuf =
  "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited; escaping=underscores";
const wantsProtobuf = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited";

describe("the format is what the client likes best of what there is", () => {
  const cases: { name: string; accept: string | undefined; want: string }[] = [
    { name: "nothing said", accept: undefined, want: text },
    { name: "anything", accept: "*/*", want: text },
    { name: "something else", accept: "application/json", want: text },
    { name: "OpenMetrics only", accept: "application/openmetrics-text;version=1.0.0", want: text },
    { name: "protobuf", accept: wantsProtobuf, want: protobuf },
    { name: "protobuf in quotes", accept: wantsProtobuf.replace("delimited", '"delimited"'), want: protobuf },
    { name: "protobuf as text is not there", accept: wantsProtobuf.replace("delimited", "text"), want: text },
    { name: "another message", accept: wantsProtobuf.replace("MetricFamily", "Other"), want: text },
    {
      name: "Prometheus with native histograms",
      accept: `${wantsProtobuf};q=0.6,application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4,*/*;q=0.2`,
      want: protobuf,
    },
    { name: "text liked better", accept: `${wantsProtobuf};q=0.3,text/plain;version=0.0.4;q=0.9`, want: text },
    { name: "protobuf refused", accept: `${wantsProtobuf};q=0`, want: text },
    {
      name: "an old text version is passed over",
      accept: `text/plain;version=0.0.1,${wantsProtobuf};q=0.1`,
      want: protobuf,
    },
    { name: "equal ones in their order", accept: `text/plain,${wantsProtobuf}`, want: text },
    { name: "odd bytes", accept: ';;=,;q=x,="",', want: text },
    {
      name: "another escaping",
      accept: "text/plain;version=0.0.4;escaping=allow-utf-8",
      want: text.replace("underscores", "allow-utf-8"),
    },
    { name: "an unknown escaping", accept: "text/plain;escaping=evil\\r\\n", want: text },
  ];
  for (const { name, accept, want } of cases) {
    test(name, () => expect(negotiate(accept, undefined).contentType).toBe(want));
  }
});

describe("gzip is used by those who say so", () => {
  const cases: [string | undefined, boolean][] = [
    [undefined, false],
    ["", false],
    ["gzip", true],
    ["deflate, GZIP;q=0.5", true],
    ["gzip;q=0", false],
    ["identity", false],
    ["zstd", false],
    ["*", true],
  ];
  for (const [header, want] of cases) {
    test(String(header), () => expect(negotiate(undefined, header).gzip).toBe(want));
  }
});
