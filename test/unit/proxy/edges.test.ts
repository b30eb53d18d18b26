import { readFile } from "node:fs/promises";
import { describe, expect, test } from "vitest";
import { createLogger, silentLogger } from "../../../agent/lib/log.ts";
import { type Commands, createCommands } from "../../../agent/proxy/commands.ts";
import {
  cleanTimeoutMs,
  ConntrackCleaner,
  parseFlow,
  removalAttemptsMax,
  staleFlowTest,
  targetsOf,
} from "../../../agent/proxy/conntrack.ts";
import { canonicalRule } from "../../../agent/proxy/iptables/canonical.ts";
import { createIptables } from "../../../agent/proxy/iptables/exec.ts";
import { RefusedLine } from "../../../agent/proxy/iptables/port.ts";
import { decideFlavour, type FlavourEvidence, observeFlavours } from "../../../agent/proxy/iptables/flavour.ts";
import { addToPrint, chainPrint } from "../../../agent/proxy/iptables/print.ts";
import { ServiceModel } from "../../../agent/proxy/model.ts";
import { proxyOptionsDefault } from "../../../agent/proxy/options.ts";
import { applySysctls, decideConntrackSysctls, decideProxySysctls } from "../../../agent/proxy/sysctl.ts";
import { ended, FakeCommands } from "../../support/fake-commands.ts";
import { makeService, makeSlice } from "../../support/service-objects.ts";
import { FakeClock } from "../kube/fake-clock.ts";

const signal = new AbortController().signal;

describe("stale flows", () => {
  const ports = [{ name: "dns", port: 53, nodePort: 30_053, protocol: "UDP" as const }];
  const describe_ = (endpoints: Parameters<typeof makeSlice>[1]) => {
    const model = new ServiceModel("IPv4", { name: "n1", zone: undefined, ips: [] });
    model.setService("ns1/dns", makeService("dns", { type: "NodePort", ports, externalIPs: ["198.51.100.1"] }));
    model.setSlice("ns1/dns-a", makeSlice("dns", endpoints, { ports: [{ name: "dns", port: 5353, protocol: "UDP" }] }));
    return targetsOf(model.describe("ns1/dns"));
  };
  const none = targetsOf({ key: "ns1/dns", ports: [], healthCheckNodePort: 0, localReady: 0, warnings: [] });
  const cleanerWith = (commands: FakeCommands, log = silentLogger, clock = new FakeClock()) =>
    new ConntrackCleaner({ commands, family: "IPv4", clock, log });
  const flow = { protocol: "udp" as const, dstIP: "10.96.0.10", dstPort: 53, replyIP: "10.244.1.5", replyPort: 5353 };
  const cases: {
    name: string;
    endpoints: Parameters<typeof makeSlice>[1];
    flow: Partial<typeof flow>;
    want: boolean;
  }[] = [
    { name: "to an endpoint that serves", endpoints: ["10.244.1.5"], flow: {}, want: false },
    { name: "to one that went", endpoints: ["10.244.1.6"], flow: {}, want: true },
    { name: "to one that went, and none is left", endpoints: [], flow: {}, want: true },
    {
      name: "begun when there was none",
      endpoints: ["10.244.1.5"],
      flow: { replyIP: "10.96.0.10", replyPort: 53 },
      want: true,
    },
    {
      name: "to one that terminates but still serves",
      endpoints: [{ address: "10.244.1.5", conditions: { ready: false, serving: true, terminating: true } }],
      flow: {},
      want: false,
    },
    { name: "by external IP", endpoints: [], flow: { dstIP: "198.51.100.1" }, want: true },
    { name: "by node port", endpoints: [], flow: { dstIP: "192.0.2.1", dstPort: 30_053 }, want: true },
    {
      name: "to the same port number elsewhere",
      endpoints: [],
      flow: { dstIP: "203.0.113.9", dstPort: 30_053 },
      want: false,
    },
    { name: "of no service", endpoints: [], flow: { dstIP: "10.96.0.99" }, want: false },
  ];
  for (const { name, endpoints, flow: part, want } of cases) {
    test(name, () => expect(staleFlowTest([describe_(endpoints)], ["192.0.2.1"])({ ...flow, ...part })).toBe(want));
  }

  const lines: [line: string, want: ReturnType<typeof parseFlow>][] = [
    [
      "udp      17 25 src=10.244.1.9 dst=10.96.0.10 sport=4000 dport=53 [UNREPLIED] src=10.244.1.5 dst=10.244.1.9 sport=5353 dport=4000 mark=0 use=1",
      flow,
    ],
    [
      "ipv6     10 udp      17 25 src=fd00::9 dst=fd00:96::10 sport=4000 dport=53 src=fd00::5 dst=fd00::9 sport=5353 dport=4000 use=1",
      { ...flow, dstIP: "fd00:96::10", replyIP: "fd00::5" },
    ],
    [
      "icmp     1 29 src=10.0.0.1 dst=10.0.0.2 type=8 code=0 id=5 src=10.0.0.2 dst=10.0.0.1 type=0 code=0 id=5 use=1",
      undefined,
    ],
    [
      "sctp     132 9 ESTABLISHED src=10.244.1.9 dst=10.96.0.10 sport=4000 dport=53 packets=1 bytes=70 src=10.244.1.5 dst=10.244.1.9 sport=5353 dport=4000 packets=1 bytes=70 [ASSURED] mark=0 use=1",
      { ...flow, protocol: "sctp" },
    ],
    [
      "tcp      6 431999 ESTABLISHED src=10.244.1.9 dst=10.96.0.10 sport=4000 dport=53 src=10.244.1.5 dst=10.244.1.9 sport=5353 dport=4000 [ASSURED] mark=0 use=1",
      { ...flow, protocol: "tcp" },
    ],
    ["conntrack v1.4.7 (conntrack-tools): 3 flow entries have been shown.", undefined],
  ];
  for (const [line, want] of lines) {
    test(`parseFlow: ${line.slice(0, 50)}`, () => expect(parseFlow(line)).toEqual(want));
  }

  test("to an address that the service gave up, if they lead to what was behind it", async () => {
    const commands = new FakeCommands();
    const cleaner = cleanerWith(commands);
    const line = (dst: string, port: number, reply: string) =>
      `udp 17 29 src=10.244.1.9 dst=${dst} sport=4000 dport=${port} src=${reply} dst=10.244.1.9 sport=5353 dport=4000 use=1`;
    commands.flows = [
      line("10.96.0.10", 53, "10.244.1.5"),
      line("192.0.2.1", 30_053, "10.244.1.5"),
      line("192.0.2.1", 30_053, "10.244.7.7"), // somebody else's translation
      line("10.96.0.11", 53, "10.244.1.5"),
    ];
    const deleted = () => commands.log.filter((entry) => entry.startsWith("conntrack -D"));
    const before = describe_(["10.244.1.5"]);
    await cleaner.clean(new Map([["ns1/dns", before]]), ["192.0.2.1"], signal);
    // Only the one that does not serve, behind the node port.
    expect(deleted()).toHaveLength(1);
    commands.log.length = 0;
    expect(cleaner.knows("ns1/dns")).toBe(true);
    await cleaner.clean(new Map([["ns1/dns", none]]), ["192.0.2.1"], signal);
    expect(
      deleted().map((entry) => / --orig-dst (\S+) --orig-port-dst (\S+) --reply-src (\S+)/.exec(entry)?.slice(1)),
    ).toEqual([
      ["10.96.0.10", "53", "10.244.1.5"],
      ["192.0.2.1", "30053", "10.244.1.5"],
    ]);
    expect(cleaner.knows("ns1/dns")).toBe(false);
  });

  test("to an address that another service took over stay", async () => {
    const commands = new FakeCommands();
    const cleaner = cleanerWith(commands);
    const one = describe_(["10.244.1.5"]);
    await cleaner.clean(
      new Map([
        ["ns1/dns", one],
        ["ns1/other", one],
      ]),
      [],
      signal,
    );
    commands.flows = [
      "udp 17 29 src=10.244.1.9 dst=10.96.0.10 sport=4000 dport=53 src=10.244.1.5 dst=10.244.1.9 sport=5353 dport=4000 use=1",
    ];
    await cleaner.clean(new Map([["ns1/dns", none]]), [], signal);
    expect(commands.log.some((entry) => entry.startsWith("conntrack -D"))).toBe(false);
  });

  test("a new start knows of nothing that was given up", () => {
    const cleaner = cleanerWith(new FakeCommands());
    expect(cleaner.knows("ns1/dns")).toBe(false);
  });

  test("without the command: one warning, then silence", async () => {
    const commands = new FakeCommands();
    commands.missing.add("conntrack");
    const written: string[] = [];
    const log = createLogger({ level: "warn", stream: { write: (line) => void written.push(line) } });
    const cleaner = cleanerWith(commands, log);
    const services = new Map([["ns1/dns", describe_([])]]);
    expect(await cleaner.clean(services, [], signal)).toBe(0);
    expect(await cleaner.clean(services, [], signal)).toBe(0);
    expect(written).toHaveLength(1);
  });

  test("are removed also if one of them goes by itself meanwhile", async () => {
    const commands = new FakeCommands();
    const line =
      "udp 17 29 src=10.244.1.9 dst=10.96.0.10 sport=4000 dport=53 src=10.244.1.100 dst=10.244.1.9 sport=5353 dport=4000 use=1";
    commands.flows = [line];
    const gone = "conntrack v1.4.7 (conntrack-tools): Operation failed: such conntrack doesn't exist";
    const answers = [
      ended(1, `${line}\n${line}\n`, gone),
      ended(0, "", "conntrack v1.4.7: 3 flow entries have been deleted."),
    ];
    let removals = 0;
    const racing = {
      lines: commands.lines,
      run: async () => answers[Math.min(removals++, answers.length - 1)] ?? ended(1, "", gone),
    };
    const cleaner = new ConntrackCleaner({
      commands: racing,
      family: "IPv4",
      clock: new FakeClock(),
      log: silentLogger,
    });
    const services = new Map([["ns1/dns", describe_(["10.244.1.5"])]]);
    expect(await cleaner.clean(services, [], signal)).toBe(5);
    answers.splice(0);
    removals = 0;
    await expect(cleaner.clean(services, [], signal)).rejects.toThrow(/remove udp flows to 10.244.1.100:5353/);
    expect(removals).toBe(removalAttemptsMax);
  });

  test("are removed as long as there is time; the rest is for another look", async () => {
    const commands = new FakeCommands();
    const clock = new FakeClock();
    let removals = 0;
    const slow = {
      lines: commands.lines,
      run: async (...args: Parameters<FakeCommands["run"]>) => {
        removals += 1;
        await clock.advance(cleanTimeoutMs / 5);
        return await commands.run(...args);
      },
    };
    commands.flows = Array.from(
      { length: 20 },
      (_, n) =>
        `udp 17 29 src=10.244.1.9 dst=10.96.0.10 sport=4000 dport=53 src=10.244.1.${100 + n} dst=10.244.1.9 sport=5353 dport=4000 use=1`,
    );
    const cleaner = new ConntrackCleaner({ commands: slow, family: "IPv4", clock, log: silentLogger });
    const services = new Map([["ns1/dns", describe_(["10.244.1.5"])]]);
    await expect(cleaner.clean(services, [], signal)).rejects.toThrow(/flows are left after/);
    expect(removals).toBeLessThan(20);
    commands.flows = commands.flows.slice(0, 2);
    expect(await cleaner.clean(services, [], signal)).toBe(2);
  });
});

describe("kernel settings", () => {
  const conntrack = proxyOptionsDefault.conntrack;
  const maxOf = (options: Partial<typeof conntrack>, cpus: number) =>
    decideConntrackSysctls({ ...conntrack, ...options }, cpus).find(({ path }) => path.endsWith("nf_conntrack_max"))
      ?.value;
  test("the size of the flow table grows with the CPUs, between a floor and a cap", () => {
    expect(maxOf({}, 2)).toBe(131_072);
    expect(maxOf({}, 8)).toBe(262_144);
    expect(maxOf({}, 64)).toBe(1_048_576);
    expect(maxOf({ maxPerCore: 0 }, 64)).toBeUndefined();
  });

  test("0 leaves a timeout alone", () => {
    const paths = decideConntrackSysctls({ ...conntrack, tcpEstablishedTimeoutSeconds: 0, tcpBeLiberal: true }, 1).map(
      ({ path }) => path,
    );
    expect(paths).toContain("net/netfilter/nf_conntrack_tcp_be_liberal");
    expect(paths.some((path) => /established|udp/.test(path))).toBe(false);
  });

  test("route_localnet only for node ports on loopback", () => {
    const has = (localhost: boolean) =>
      decideProxySysctls(localhost).some(({ path }) => path.endsWith("route_localnet"));
    expect([has(true), has(false)]).toEqual([true, false]);
  });

  test("only what differs is written; what cannot be written is a warning, what does not exist is none", async () => {
    const written: string[] = [];
    const warned: string[] = [];
    const log = createLogger({ level: "warn", stream: { write: (line) => void warned.push(line) } });
    const failing = (code: string) => Promise.reject(Object.assign(new Error(code), { code }));
    const first = await applySysctls(
      [
        { path: "same", value: 1 },
        { path: "other", value: 2 },
        { path: "large", value: 5, isMinimum: true },
        { path: "gone", value: 1 },
        { path: "readonly", value: 1 },
      ],
      {
        read: async (path) => (path === "gone" ? failing("ENOENT") : path === "large" ? "9" : "1"),
        write: async (path, value) => (path === "readonly" ? failing("EROFS") : void written.push(`${path}=${value}`)),
      },
      log,
    );
    expect(first).toEqual({ failed: [], missing: [{ path: "gone", value: 1 }] });
    expect(written).toEqual(["other=2"]);
    expect(warned).toEqual([]); // "readonly" has the right value already
    const { failed, missing } = await applySysctls(
      [{ path: "readonly", value: 7 }],
      { read: async () => "1", write: () => failing("EROFS") },
      log,
    );
    expect(warned.join()).toMatch(/readonly.*EROFS/);
    expect(failed).toEqual([{ path: "readonly", value: 7 }]);
    expect(missing).toEqual([]);
  });
});

describe("a rule as iptables lists it is recognised", () => {
  const cases: [ours: string, listed: string][] = [
    [
      "-m comment --comment ns1/web:p80 -s 10.244.1.5 -j KUBE-MARK-MASQ",
      '-s 10.244.1.5/32 -m comment --comment "ns1/web:p80" -j KUBE-MARK-MASQ',
    ],
    [
      '-m comment --comment "a -> b:80" -m statistic --mode random --probability 0.3333333333 -j X',
      '-m comment --comment "a -> b:80" -m statistic --mode random --probability 0.33333333349 -j X',
    ],
    [
      "-m recent --name X --rcheck --seconds 60 --reap -j X",
      "-m recent --rcheck --seconds 60 --reap --name X --mask 255.255.255.255 --rsource -j X",
    ],
    [
      "-m tcp -p tcp -d 10.96.0.1 --dport 80 -j REJECT",
      "-d 10.96.0.1/32 -p tcp -m tcp --dport 80 -j REJECT --reject-with icmp-port-unreachable",
    ],
    ["-d fd00::1 -j X", "-d fd00::1/128 -j X"],
  ];
  for (const [ours, listed] of cases) test(ours, () => expect(canonicalRule(listed)).toBe(canonicalRule(ours)));

  const different: [a: string, b: string][] = [
    ["-s 10.0.0.1 -j X", "-d 10.0.0.1 -j X"],
    ["-s 10.0.0.1 -j X", "! -s 10.0.0.1 -j X"],
    ["-s 10.0.0.1 -j X", "-s 10.0.0.1 -g X"],
    ["-d fd00::1/32 -j X", "-d fd00::1 -j X"],
    ["--probability 0.5 -j X", "--probability 0.3333333333 -j X"],
    ["-j X", "-j Y"],
  ];
  for (const [a, b] of different) test(`${a} is not ${b}`, () => expect(canonicalRule(a)).not.toBe(canonicalRule(b)));

  test("the order of rules counts", () => {
    expect(chainPrint(["-j X", "-j Y"])).not.toBe(chainPrint(["-j Y", "-j X"]));
    expect(addToPrint(chainPrint(["-j X"]), "-j Y")).toBe(chainPrint(["-j X", "-j Y"]));
  });
});

describe("which iptables", () => {
  const evidence = (flavour: "nft" | "legacy", more: Partial<FlavourEvidence> = {}): FlavourEvidence => ({
    flavour,
    isUsable: true,
    hasHint: false,
    rules: 0,
    ...more,
  });
  const cases: {
    name: string;
    nft?: Partial<FlavourEvidence>;
    legacy?: Partial<FlavourEvidence>;
    want: string | undefined;
  }[] = [
    { name: "a clean machine decides itself", want: undefined },
    { name: "the kubelet's mark", legacy: { hasHint: true }, nft: { rules: 50 }, want: "legacy" },
    { name: "the most rules", legacy: { rules: 3 }, nft: { rules: 50 }, want: "nft" },
    {
      name: "marks on both: rules",
      legacy: { hasHint: true, rules: 9 },
      nft: { hasHint: true, rules: 2 },
      want: "legacy",
    },
    { name: "only one is there", legacy: { isUsable: false }, nft: { rules: 1 }, want: "nft" },
  ];
  for (const { name, nft, legacy, want } of cases) {
    test(name, () => expect(decideFlavour([evidence("nft", nft), evidence("legacy", legacy)])).toBe(want));
  }

  test("is seen from what both have saved", async () => {
    const commands = new FakeCommands();
    await commands.tables.iptables.restore("*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n");
    commands.missing.add("iptables-legacy-save");
    const found = await observeFlavours(commands, signal);
    expect(found).toEqual([evidence("nft", { hasHint: true }), evidence("legacy", { isUsable: false })]);
  });
});

describe("commands", () => {
  test("wait for the lock as their version can", async () => {
    const commands = new FakeCommands();
    const restoreOf = async (version: string) => {
      commands.version = version;
      const iptables = await createIptables(commands, "IPv4", undefined, signal);
      await iptables.restore("*nat\nCOMMIT\n", signal);
      return { line: commands.log.at(-1), hasRandomFully: iptables.hasRandomFully };
    };
    expect(await restoreOf("v1.8.9 (nf_tables)")).toEqual({
      line: "iptables-restore -w 5 --noflush --counters",
      hasRandomFully: true,
    });
    expect(await restoreOf("v1.6.1")).toEqual({ line: "iptables-restore --noflush --counters", hasRandomFully: false });
  });

  const failing = (code: number, stderr: string): Commands => {
    const run: Commands["run"] = async (_file, args) => ({
      code: args[0] === "--version" ? 0 : code,
      signal: undefined,
      stdout: "iptables v1.8.9 (nf_tables)",
      stderr,
      truncated: false,
      durationMs: 0,
      ...(args[0] === "--version" ? {} : { failure: "exit" as const }),
      message: "",
    });
    return { run, lines: run };
  };
  const verdicts: [stderr: string, code: number, want: string, text: RegExp][] = [
    [
      "Another app is currently holding the xtables lock; still 4s 0us time ahead to have a chance",
      4,
      "Unavailable",
      /lock/,
    ],
    [
      "iptables-nft-restore v1.8.9 (nf_tables): \nline 2: RULE_APPEND failed (Invalid argument): rule in chain KUBE-SEP-X",
      4,
      "Invalid",
      /line 2: -A KUBE-SEP-X/,
    ],
    [
      "iptables-restore v1.8.9 (nf_tables): \nline 2: RULE_APPEND failed (Resource temporarily unavailable)",
      4,
      "Unavailable",
      /temporarily/,
    ],
    [
      "iptables-nft-restore v1.8.9 (nf_tables): \nline 2: CHAIN_DEL failed (Device or resource busy): chain KUBE-SEP-X",
      4,
      "Invalid",
      /CHAIN_DEL failed/,
    ],
    [
      "# Warning: iptables-legacy tables present\niptables-restore: line 2 failed",
      1,
      "Invalid",
      /exit code 1: iptables-restore: line 2 failed/,
    ],
    [
      "iptables-restore v1.8.9 (legacy): Set NOPE doesn't exist.\n\nError occurred at line: 2\nTry `iptables-restore -h' …",
      2,
      "Invalid",
      /Set NOPE doesn't exist.*line 2: -A/,
    ],
  ];
  for (const [stderr, code, want, text] of verdicts) {
    test(`that exit with ${code} mean ${want}: ${stderr.slice(0, 60)}`, async () => {
      const iptables = await createIptables(failing(code, stderr), "IPv4", undefined, signal);
      const failure = await iptables
        .restore("*nat\n-A KUBE-SEP-X -j DNAT\nCOMMIT\n", signal)
        .catch((err: unknown) => err);
      expect(failure).toMatchObject({ code: want, message: expect.stringMatching(text) });
    });
  }

  test("that refuse a line show its neighbours", () => {
    const text = Array.from({ length: 20 }, (_, n) => `line ${n + 1}`).join("\n");
    expect(new RefusedLine(text, 10).around).toEqual(
      ["7", "8", "9", "10", "11", "12", "13"].map((n) => `${n}: line ${n}`),
    );
    expect(new RefusedLine(text, 1).around).toHaveLength(4);
  });

  test("that list many chains at once say which one is missing", async () => {
    const tables = new FakeCommands();
    await tables.tables.iptables.restore("*nat\n:KUBE-X - [0:0]\n-A KUBE-X -j RETURN\nCOMMIT\n");
    const iptables = await createIptables(tables, "IPv4", undefined, signal);
    expect(await iptables.listMany({ nat: ["KUBE-X", "OUTPUT"], filter: [] }, signal)).toEqual(
      new Map([
        ["nat KUBE-X", ["-A KUBE-X -j RETURN"]],
        ["nat OUTPUT", []],
      ]),
    );
    expect(await iptables.listMany({ nat: ["KUBE-X", "KUBE-Y"] }, signal)).toEqual({ missing: "nat KUBE-Y" });
    const nft = failing(
      1,
      "iptables-nft-restore v1.8.9 (nf_tables): chain `KUBE-Y' in table `nat' is incompatible, use 'nft' tool.",
    );
    const named = await createIptables(nft, "IPv4", undefined, signal);
    expect(await named.listMany({ nat: ["KUBE-Y"] }, signal)).toEqual({ missing: "nat KUBE-Y" });
  });

  test("that list long chains of others keep what is asked for, however much there is", async () => {
    const tables = new FakeCommands();
    const foreign = Array.from(
      { length: 12_000 },
      (_, n) => `-s 10.${n >> 8}.${n & 255}.1 -m comment --comment "x${"y".repeat(60)}" -j DROP`,
    );
    tables.tables.iptables.tables.get("filter")?.set("INPUT", [...foreign, "-j KUBE-FIREWALL"]);
    const iptables = await createIptables(tables, "IPv4", undefined, signal);
    expect(await iptables.listRules("filter", "INPUT", signal)).toEqual(["-A INPUT -j KUBE-FIREWALL"]);
    expect(await iptables.listMany({ filter: ["INPUT", "OUTPUT"] }, signal)).toEqual(
      new Map([
        ["filter INPUT", ["-A INPUT -j KUBE-FIREWALL"]],
        ["filter OUTPUT", []],
      ]),
    );
  });

  test("that list fewer chains than were asked for are not believed", async () => {
    const commands = new FakeCommands();
    const iptables = await createIptables(
      {
        run: commands.run,
        lines: async (file, args, options) => {
          return await commands.lines(file, args, {
            ...options,
            onLine: (line) => (line.startsWith("-N OUTPUT") ? undefined : options.onLine(line)),
          });
        },
      },
      "IPv4",
      undefined,
      signal,
    );
    await expect(iptables.listMany({ filter: ["INPUT", "OUTPUT"] }, signal)).rejects.toMatchObject({
      code: "Unavailable",
    });
    await expect(iptables.listMany({ filter: ["OUTPUT", "INPUT"] }, signal)).rejects.toMatchObject({
      code: "Unavailable",
    });
  });

  test("that refuse a text name the line", async () => {
    const iptables = await createIptables(new FakeCommands(), "IPv4", undefined, signal);
    await expect(iptables.restore("*nat\n-A NOWHERE -j DROP\nCOMMIT\n", signal)).rejects.toThrow(
      /line 2: -A NOWHERE -j DROP/,
    );
  });

  test("are read line by line, and killed once enough was seen", async () => {
    const commands = createCommands();
    const seen: string[] = [];
    const enough = await commands.lines("yes", [], { timeoutMs: 5_000, onLine: (line) => seen.push(line) < 3 });
    expect(seen).toEqual(["y", "y", "y"]);
    expect(enough.failure).toBeUndefined();
    expect((await commands.lines("no-such-command", [], { timeoutMs: 5_000, onLine: () => {} })).failure).toBe("spawn");
    expect((await commands.lines("false", [], { timeoutMs: 5_000, onLine: () => {} })).failure).toBe("exit");
    expect((await commands.lines("sleep", ["9"], { timeoutMs: 50, onLine: () => {} })).failure).toBe("timeout");
    const aborted = AbortSignal.abort();
    expect(
      (await commands.lines("sleep", ["9"], { timeoutMs: 5_000, signal: aborted, onLine: () => {} })).failure,
    ).toBe("canceled");
    const parts: string[] = [];
    const script = "printf 'one\\ntw'; sleep 0.05; printf 'o\\n\\303'; sleep 0.05; printf '\\244'";
    await commands.lines("sh", ["-c", script], { timeoutMs: 5_000, onLine: (line) => void parts.push(line) });
    expect(parts).toEqual(["one", "two", "ä"]);
    const echoed: string[] = [];
    const cat = { stdin: "one\ntwo\n", timeoutMs: 5_000, onLine: (line: string) => void echoed.push(line) };
    expect((await commands.lines("cat", [], cat)).failure).toBeUndefined();
    expect(echoed).toEqual(["one", "two"]);
    expect(silentLogger.level).toBe("silent");
  });

  test("are killed with what they started", async () => {
    const commands = createCommands();
    let pid = 0;
    const stop = new AbortController();
    const onLine = (line: string) => {
      pid = Number(line);
      stop.abort();
    };
    const script = "sleep 30 & echo $!; wait";
    await commands.lines("sh", ["-c", script], { timeoutMs: 5_000, signal: stop.signal, onLine });
    const isGone = async () =>
      /^State:\s+Z|^gone/m.test(await readFile(`/proc/${pid}/status`, "utf8").catch(() => "gone"));
    await expect.poll(isGone, { interval: 5 }).toBe(true);
  });
});
