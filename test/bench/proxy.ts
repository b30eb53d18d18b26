/**
 * How long the iptables backend takes to load 1 000 and 10 000 services of 5 endpoints each, and to apply the change of
 * one endpoint, in a network namespace of its own. Run as root: `.ci/node test/bench/proxy.ts [services…]`.
 *
 * Beside each figure stands a floor from the same run: for the cold load, iptables-restore alone on the same texts; for a
 * change, iptables-restore of one trivial chain into the loaded tables, which no change can beat (the kernel checks all
 * chains that packets can reach, for every text); for a packet, what a linear layout would make it visit.
 * FLAVOUR=legacy measures the other flavour, ADOPT=1 also a new start on loaded tables.
 */
import { readFileSync } from "node:fs";
import { monitorEventLoopDelay } from "node:perf_hooks";
import { createCommands } from "../../agent/proxy/commands.ts";
import { createIptables } from "../../agent/proxy/iptables/exec.ts";
import { createIpset } from "../../agent/proxy/iptables/ipset.ts";
import type { Iptables } from "../../agent/proxy/iptables/port.ts";
import { sharedSetNames } from "../../agent/proxy/iptables/set-names.ts";
import { IptablesBackend } from "../../agent/proxy/iptables/sync.ts";
import { ServiceModel } from "../../agent/proxy/model.ts";
import { proxyOptionsDefault } from "../../agent/proxy/options.ts";
import { restAfterLook } from "../../agent/proxy/rule-watch.ts";
import { exec } from "../../agent/lib/exec.ts";
import { systemClock } from "../../agent/lib/clock.ts";
import { silentLogger } from "../../agent/lib/log.ts";
import { FakeIptables } from "../support/fake-iptables.ts";
import { tracePacket } from "../support/packet-tracer.ts";
import { makeService, makeSlice } from "../support/service-objects.ts";

const changes = 15;
const looks = 100;
const coldTextsMax = 1_000;
const endpointsPerService = 5;
const signal = new AbortController().signal;
const namespace = `nodelet-bench-${process.pid}`;
const flavour = process.env["FLAVOUR"] === "legacy" ? "legacy" : "nft";
const sizes = process.argv.slice(2).map(Number);

function clusterIP(i: number): string {
  // Spread over a /16 as the API server's allocator does, but the same in every run.
  const at = (i * 40_503) % 65_536;
  return `10.96.${at >> 8}.${at & 255}`;
}

function slice(i: number, firstEndpoint: number) {
  const endpoints = Array.from({ length: endpointsPerService }, (_, n) => {
    const at = i * endpointsPerService + n + firstEndpoint;
    // One of fifty is on this node: a cluster of as many.
    return { address: `10.${128 + (at >> 16)}.${(at >> 8) & 255}.${at & 255}`, nodeName: at % 50 === 0 ? "n1" : "n2" };
  });
  return makeSlice(`svc${i}`, endpoints);
}

/** User and system time of waited-for children, in ms: the sum over processes that ended. */
function childrenCpuMs(): number {
  const fields = readFileSync("/proc/self/stat", "utf8").split(") ")[1]?.split(" ") ?? [];
  // cutime and cstime, in ticks of 10 ms.
  return (Number(fields[13]) + Number(fields[14])) * 10;
}

function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[values.length >> 1] ?? Number.NaN;
}

async function measure(run: () => Promise<unknown>) {
  const cpu = process.cpuUsage();
  const children = childrenCpuMs();
  const startedAt = performance.now();
  await run();
  const used = process.cpuUsage(cpu);
  return {
    wallMs: performance.now() - startedAt,
    cpuMs: (used.user + used.system) / 1000 + childrenCpuMs() - children,
  };
}

async function ip(...args: string[]): Promise<void> {
  const result = await exec("ip", args, { timeoutMs: 10_000 });
  if (result.failure !== undefined) throw new Error(result.message);
}

async function renewNamespace(): Promise<void> {
  await ip("netns", "del", namespace);
  await ip("netns", "add", namespace);
}

async function benchmark(count: number): Promise<Record<string, string | number>> {
  const commands = createCommands(["nsenter", `--net=/run/netns/${namespace}`]);
  const real = await createIptables(commands, "IPv4", flavour, signal);
  const texts: string[] = [];
  const iptables: Iptables = {
    ...real,
    restore: (text, stop) => {
      if (texts.length < coldTextsMax) texts.push(text);
      return real.restore(text, stop);
    },
  };
  const ipset = createIpset(commands, "IPv4");
  const backend = new IptablesBackend({ iptables, ipset, clock: systemClock, log: silentLogger });
  const model = new ServiceModel("IPv4", { name: "n1", zone: undefined, ips: [] });
  for (let i = 0; i < count; i++) {
    const ports = [{ name: "p80", port: 80, protocol: "TCP" as const }];
    model.setService(`ns1/svc${i}`, makeService(`svc${i}`, { clusterIP: clusterIP(i), ports }));
    model.setSlice(`ns1/svc${i}-a`, slice(i, 0));
  }
  const request = (isFull: boolean) => ({
    isFull,
    keys: isFull ? model.keys() : [...model.pending().keys],
    describe: (key: string) => model.describe(key),
    endpointCount: () => model.endpointCount(),
    fixed: {
      family: "IPv4" as const,
      mark: "0x004000",
      nodePortIPs: undefined,
      hasLocalhostNodePorts: false,
      dropsInvalid: true,
      hasRandomFully: true,
    },
    render: {
      family: "IPv4" as const,
      masqueradeAll: false,
      localPods: { match: "-s 10.128.0.0/9", notMatch: "! -s 10.128.0.0/9" },
    },
  });
  const sync = async (target: IptablesBackend, isFull: boolean) => {
    const pending = model.pending();
    const result = await target.sync(request(isFull), signal);
    model.settle(pending);
    return result;
  };

  const floor: number[] = [];
  const floorText = "*nat\n:BENCH - [0:0]\n-A BENCH -j RETURN\nCOMMIT\n";
  const delay = monitorEventLoopDelay({ resolution: 5 });
  delay.enable();
  const cold = await measure(() => sync(backend, true));
  delay.disable();
  const coldTexts = texts.splice(0);

  for (let n = 0; n < changes; n++) floor.push((await measure(() => iptables.restore(floorText, signal))).wallMs);
  const wall: number[] = [];
  let cpuMs = 0;
  for (let n = 0; n < changes; n++) {
    const i = (n * 7919) % count;
    model.setSlice(`ns1/svc${i}-a`, slice(i, 1));
    const one = await measure(() => sync(backend, false));
    wall.push(one.wallMs);
    cpuMs += one.cpuMs;
  }
  const changeWallMs = median(wall);
  const again =
    process.env["ADOPT"] === undefined
      ? undefined
      : await measure(() =>
          sync(new IptablesBackend({ iptables, ipset, clock: systemClock, log: silentLogger }), true),
        );
  const check = await measure(async () => {
    for (let n = 0; n < looks; n++) await backend.findDamage(signal);
  });
  const lookMs = check.wallMs / looks;
  const restMs = restAfterLook(lookMs, proxyOptionsDefault.syncPeriodMs);

  const fake = new FakeIptables();
  await sync(new IptablesBackend({ iptables: fake, ipset: undefined, clock: systemClock, log: silentLogger }), true);
  let visitedMax = 0;
  for (let i = 0; i < count; i += Math.ceil(count / 500)) {
    const packet = { src: "10.128.0.9", dst: clusterIP(i), proto: "tcp" as const, dport: 80, iface: "veth1" };
    visitedMax = Math.max(visitedMax, tracePacket(fake.tables, packet).visited.nat);
  }
  await renewNamespace();
  await ipset.create(Object.values(sharedSetNames("IPv4")), signal);
  const coldFloor = await measure(async () => {
    for (const text of coldTexts) await real.restore(text, signal);
  });
  return {
    services: count,
    "cold ms": Math.round(cold.wallMs),
    "cold/floor": Math.round((cold.wallMs / coldFloor.wallMs) * 100) / 100,
    "cold cpu": Math.round(cold.cpuMs),
    "stall p99 ms": Math.round(delay.percentile(99) / 1e6),
    "stall max ms": Math.round(delay.max / 1e6),
    "change ms": Math.round(changeWallMs * 10) / 10,
    "change cpu": Math.round(cpuMs / changes),
    "floor ms": Math.round(median(floor) * 10) / 10,
    "change/floor": Math.round((changeWallMs / median(floor)) * 10) / 10,
    "look ms": Math.round(lookMs * 10) / 10,
    "look cpu": Math.round((check.cpuMs / looks) * 10) / 10,
    "look every s": Math.round(restMs / 100) / 10,
    // Both families.
    "looks % cpu": Math.round(((2 * check.cpuMs) / looks / (restMs + lookMs)) * 100_000) / 1_000,
    ...(again === undefined ? {} : { "adopt ms": Math.round(again.wallMs) }),
    "rules visited": visitedMax,
    "linear/visited": Math.round(count / visitedMax),
  };
}

await ip("netns", "add", namespace);
try {
  const rows = [];
  for (const count of sizes.length > 0 ? sizes : [1_000, 10_000]) {
    rows.push(await benchmark(count));
    await renewNamespace();
  }
  console.table(rows);
} finally {
  await exec("ip", ["netns", "del", namespace], { timeoutMs: 60_000 });
}
