/** All benchmarks, one after another, so that none disturbs the next. */
await import("./pods.ts");
await import("./volumes.ts");
await import("./probes.ts");
await import("./streams.ts");
await import("./proxy.ts");
await import("./scrape.ts");
