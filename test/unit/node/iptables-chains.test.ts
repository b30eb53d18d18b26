import { afterEach, beforeEach, expect, test } from "vitest";
import { AgentError } from "../../../agent/lib/errors.ts";
import { createLogger } from "../../../agent/lib/log.ts";
import { IptablesChains, renderMissing } from "../../../agent/node/iptables-chains.ts";
import { FakeIptables } from "../../support/fake-iptables.ts";
import { FakeClock, settle } from "../kube/fake-clock.ts";

const minuteMs = 61_000; // and the jitter
let clock: FakeClock;
let tables: Record<"IPv4" | "IPv6", FakeIptables>;
let lines: string[];
let stop: AbortController;
let done: Promise<void>;
let openError: Error | undefined;

beforeEach(() => {
  clock = new FakeClock();
  tables = { IPv4: new FakeIptables(), IPv6: new FakeIptables() };
  lines = [];
  stop = new AbortController();
  openError = undefined;
});

afterEach(async () => {
  stop.abort();
  await done;
});

async function start(): Promise<void> {
  const log = createLogger({ level: "info", stream: { write: (line) => void lines.push(line) } });
  const open = async (family: "IPv4" | "IPv6") => {
    if (openError !== undefined) throw openError;
    return tables[family];
  };
  done = new IptablesChains({ clock, log, open }).run(stop.signal);
  for (let n = 0; n < 20; n++) await settle();
}

async function aMinute(): Promise<void> {
  await clock.advance(minuteMs);
  for (let n = 0; n < 20; n++) await settle();
}

const chains = (family: "IPv4" | "IPv6", table: string) =>
  [...(tables[family].tables.get(table)?.keys() ?? [])].filter((chain) => chain.startsWith("KUBE-"));

test("the marks are in both families, the guard of the loopback network in IPv4", async () => {
  await start();
  expect(chains("IPv4", "mangle")).toEqual(["KUBE-KUBELET-CANARY", "KUBE-IPTABLES-HINT"].sort().reverse());
  expect(chains("IPv6", "mangle")).toEqual(chains("IPv4", "mangle"));
  expect(chains("IPv4", "nat")).toEqual(["KUBE-KUBELET-CANARY"]);
  expect(chains("IPv4", "filter").sort()).toEqual(["KUBE-FIREWALL", "KUBE-KUBELET-CANARY"]);
  expect(chains("IPv6", "filter")).toEqual(["KUBE-KUBELET-CANARY"]);
  const filter = tables.IPv4.tables.get("filter")!;
  expect(filter.get("INPUT")).toEqual(["-j KUBE-FIREWALL"]);
  expect(filter.get("OUTPUT")).toEqual(["-j KUBE-FIREWALL"]);
  expect(filter.get("KUBE-FIREWALL")?.join()).toContain("! -s 127.0.0.0/8");
});

test("what is there is left as it is, and nothing is written twice", async () => {
  const before = [
    "*filter",
    ":KUBE-FIREWALL - [0:0]",
    "-A INPUT -j FOREIGN",
    "-A INPUT -j KUBE-FIREWALL",
    '-A KUBE-FIREWALL -m comment --comment "block incoming localnet connections" -d 127.0.0.0/8 ! -s 127.0.0.0/8 -j DROP',
    "-A KUBE-FIREWALL -s 192.0.2.66 -j DROP",
    "COMMIT",
    "",
  ];
  await tables.IPv4.restore(before.join("\n").replace(":KUBE", ":FOREIGN - [0:0]\n:KUBE"));
  await start();
  const filter = tables.IPv4.tables.get("filter")!;
  expect(filter.get("INPUT")).toEqual(["-j FOREIGN", "-j KUBE-FIREWALL"]);
  expect(filter.get("KUBE-FIREWALL")).toHaveLength(2);
  expect(filter.get("OUTPUT")).toEqual(["-j KUBE-FIREWALL"]);
  const texts = tables.IPv4.texts.length;
  await aMinute();
  expect(tables.IPv4.texts).toHaveLength(texts);
});

test("a flush by somebody else is mended within a minute, and told", async () => {
  await start();
  const want = tables.IPv4.dump();
  tables.IPv4.flushEverything();
  await aMinute();
  expect(tables.IPv4.dump()).toBe(want);
  tables.IPv4.tables.get("filter")?.set("KUBE-FIREWALL", []);
  tables.IPv4.tables.get("filter")?.set("INPUT", []);
  await aMinute();
  expect(tables.IPv4.dump()).toBe(want);
  expect(lines.filter((line) => line.includes("are back"))).toHaveLength(2);
});

test("without a whole listing nothing is added", async () => {
  await start();
  const want = tables.IPv4.dump();
  const texts = tables.IPv4.texts.length;
  tables.IPv4.listMany = async () => {
    throw new AgentError("Unavailable", "list chains: printed other chains");
  };
  await aMinute();
  await aMinute();
  expect(tables.IPv4.dump()).toBe(want);
  expect(tables.IPv4.texts).toHaveLength(texts);
});

test("a machine without iptables is told of once, and tried again", async () => {
  openError = new AgentError("Unavailable", "no iptables here");
  await start();
  await aMinute();
  expect(lines.filter((line) => line.includes("no iptables here"))).toHaveLength(2); // one for each family
  openError = undefined;
  await aMinute();
  expect(chains("IPv4", "mangle")).toContain("KUBE-IPTABLES-HINT");
});

test("renderMissing: nothing to write for what is complete", () => {
  const listed = new Map<string, readonly string[]>([
    ["mangle KUBE-IPTABLES-HINT", []],
    ["mangle KUBE-KUBELET-CANARY", []],
    ["nat KUBE-KUBELET-CANARY", []],
    ["filter KUBE-KUBELET-CANARY", []],
  ]);
  expect(renderMissing("IPv6", listed)).toBe("");
  listed.delete("nat KUBE-KUBELET-CANARY");
  expect(renderMissing("IPv6", listed)).toBe("*nat\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n");
});
