/** All benchmarks, one after another, so that none disturbs the next. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";

await import("./pods.ts");
await import("./volumes.ts");
await import("./probes.ts");
await import("./streams.ts");
await import("./proxy.ts");
await import("./scrape.ts");
// It moves into a network namespace of its own, which a process does as a whole.
const proxyNode = fileURLToPath(new URL("proxy-node.ts", import.meta.url));
const [code] = (await once(spawn(process.execPath, [proxyNode], { stdio: "inherit" }), "exit")) as [number | null];
if (code !== 0) process.exitCode = 1;
