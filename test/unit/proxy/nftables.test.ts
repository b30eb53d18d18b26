import { pino } from "pino";
import { describe, expect, test } from "vitest";
import type { Service, ServiceSpec } from "../../../agent/kube/types.ts";
import { AgentError } from "../../../agent/lib/errors.ts";
import type { Commands } from "../../../agent/proxy/commands.ts";
import { expectNftables, relaysLocalhost } from "../../../agent/proxy/nftables/backend.ts";
import { Elements } from "../../../agent/proxy/nftables/elements.ts";
import { createNft, TableReader } from "../../../agent/proxy/nftables/exec.ts";
import { endpointBase, portBase } from "../../../agent/proxy/nftables/names.ts";
import { withoutOverlaps } from "../../../agent/proxy/nftables/render.ts";
import { NftablesRules } from "../../../agent/proxy/nftables/sync.ts";
import type { FakeNft } from "../../support/fake-nft.ts";
import { makeService, makeSlice } from "../../support/service-objects.ts";
import { Setup } from "./nftables-setup.ts";

const signal = new AbortController().signal;

const nodePort: Partial<ServiceSpec> = { type: "NodePort", ports: [{ name: "p80", port: 80, nodePort: 30_080 }] };
const nodePortChain = `external-${portBase("ns1/svc2", { protocol: "tcp", portName: "p80" })}`;
const loadBalancer = { status: { loadBalancer: { ingress: [{ ip: "203.0.113.7" }] } } };
const here = { nodeName: "n1" };
const there = { nodeName: "n2" };

const cases: [
  name: string,
  spec: Partial<ServiceSpec>,
  extra: Partial<Service>,
  endpoints: Parameters<typeof makeSlice>[1],
][] = [
  ["clusterip", {}, {}, ["10.244.1.5", "10.244.1.6"]],
  ["clusterip-no-endpoints", {}, {}, []],
  ["clusterip-affinity", { sessionAffinity: "ClientIP" }, {}, ["10.244.1.5", "10.244.1.6"]],
  [
    "clusterip-internal-local",
    { internalTrafficPolicy: "Local" },
    {},
    [
      { address: "10.244.1.5", ...here },
      { address: "10.244.2.5", ...there },
    ],
  ],
  ["clusterip-internal-local-none-here", { internalTrafficPolicy: "Local" }, {}, [{ address: "10.244.2.5", ...there }]],
  ["nodeport", nodePort, {}, ["10.244.1.5"]],
  ["nodeport-no-endpoints", nodePort, {}, []],
  [
    "nodeport-external-local",
    { ...nodePort, externalTrafficPolicy: "Local" },
    {},
    [
      { address: "10.244.1.5", ...here },
      { address: "10.244.2.5", ...there },
    ],
  ],
  [
    "nodeport-external-local-none-here",
    { ...nodePort, externalTrafficPolicy: "Local" },
    {},
    [{ address: "10.244.2.5", ...there }],
  ],
  ["external-ip", { externalIPs: ["203.0.113.9"] }, {}, ["10.244.1.5"]],
  [
    "loadbalancer-source-ranges",
    { ...nodePort, type: "LoadBalancer", loadBalancerSourceRanges: ["192.0.2.0/24", "192.0.2.128/25"] },
    loadBalancer,
    ["10.244.1.5"],
  ],
];

describe("what one service puts into the table", () => {
  test.each(cases)("%s", async (name, spec, extra, endpoints) => {
    const setup = new Setup();
    setup.put(makeService("svc1", spec, extra), makeSlice("svc1", endpoints));
    await setup.sync();
    await expect(setup.nft.dump()).toMatchFileSnapshot(`golden-nftables/${name}.txt`);
  });

  test("IPv6", async () => {
    const setup = new Setup("IPv6");
    const fixed = { ...setup.context.fixed, notFromLocalPods: undefined, nodePortIPs: undefined };
    setup.context = { fixed, render: { ...setup.context.render, fromLocalPods: undefined } };
    const spec = { ...nodePort, clusterIP: "fd00::10", clusterIPs: ["fd00::10"], ipFamilies: ["IPv6" as const] };
    setup.put(makeService("svc1", spec), makeSlice("svc1", ["fd00:244::5"], { addressType: "IPv6" }));
    await setup.sync();
    await expect(setup.nft.dump()).toMatchFileSnapshot("golden-nftables/ipv6.txt");
  });
});

test("names are kube-proxy's", () => {
  const p80 = { protocol: "tcp", portName: "p80" } as const;
  expect(portBase("ns1/svc1", p80)).toBe("ULMVA6XW-ns1/svc1/tcp/p80");
  expect(portBase("ns1/svc1", { ...p80, portName: "" })).toBe("6KJ5P52A-ns1/svc1/tcp/");
  expect(endpointBase("ns1/svc1", p80, { ip: "10.180.0.1", port: 80 })).toBe(
    "5OJB2KTY-ns1/svc1/tcp/p80__10.180.0.1/80",
  );
  expect(endpointBase("ns1/svc1", p80, { ip: "fd00:10:180::1", port: 80 })).toBe(
    "ZVRFLKHO-ns1/svc1/tcp/p80__fd00.10.180..1/80",
  );
  const long = portBase(`${"n".repeat(63)}/${"s".repeat(63)}`, { ...p80, portName: "p".repeat(130) });
  expect([long.length, long.slice(-3)]).toEqual([240, "..."]);
});

test.each([
  [
    ["10.0.0.0/8", "10.1.0.0/16", "192.0.2.1/32"],
    ["10.0.0.0/8", "192.0.2.1/32"],
  ],
  [
    ["10.1.0.0/16", "10.0.0.0/16"],
    ["10.0.0.0/16", "10.1.0.0/16"],
  ],
  [["203.0.113.7", "203.0.113.0/24"], ["203.0.113.0/24"]],
  [["10.0.0.1", "10.0.0.1/32"], ["10.0.0.1/32"]],
])("ranges without overlaps: %o", (texts, want) => expect(withoutOverlaps(texts)).toEqual(want));

describe("elements", () => {
  const element = (owner: string, value: string) => ({ owner, set: "s", key: "k", value, comment: "" });
  const taken = (elements: Elements) => {
    const parts = [...elements.takeChanges(1)];
    return {
      deletes: parts.flatMap((part) => part.deletes),
      adds: parts.flatMap((part) => part.adds.map(({ value }) => value)),
    };
  };

  test("a change and its opposite are none", () => {
    const elements = new Elements();
    elements.put(element("a", "1"));
    taken(elements);
    elements.drop("a", "k");
    elements.put(element("a", "1"));
    expect(taken(elements)).toEqual({ deletes: [], adds: [] });
  });

  test("of two services that claim the same key the first by name has it, until it goes", () => {
    const elements = new Elements();
    elements.put(element("b", "2"));
    expect(taken(elements)).toEqual({ deletes: [], adds: ["2"] });
    elements.put(element("a", "1"));
    expect(taken(elements)).toEqual({ deletes: ["k"], adds: ["1"] });
    elements.drop("a", "k");
    expect(taken(elements)).toEqual({ deletes: ["k"], adds: ["2"] });
    elements.drop("b", "k");
    expect(taken(elements)).toEqual({ deletes: ["k"], adds: [] });
  });
});

test("the list of a table", () => {
  const reader = new TableReader();
  const text = `table ip kube-proxy { # handle 1
	set cluster-ips { # handle 1
		type ipv4_addr
	}
	set affinity-5OJB2KTY-ns1/svc1/tcp/p80__10.180.0.1/80 { # handle 2
		type ipv4_addr
		size 65535
		flags dynamic,timeout
		timeout 1d2h3m4s
	}
	map service-ips { # handle 3
		type ipv4_addr . inet_proto . inet_service : verdict
	}
	chain services { # handle 4
		ip daddr @cluster-ips meta mark set meta mark | 0x00004000 # handle 7
		ip daddr { 10.96.0.1, 10.96.0.2,
			 10.96.0.3 } drop # handle 8
	}
	chain filter-input { # handle 5
		type filter hook input priority filter; policy accept;
	}
}`;
  for (const line of text.split("\n")) reader.add(line);
  const { chains, sets, maps, handles } = reader;
  expect({ chains, sets, maps, handles }).toEqual({
    chains: ["services", "filter-input"],
    sets: new Map([
      ["cluster-ips", undefined],
      ["affinity-5OJB2KTY-ns1/svc1/tcp/p80__10.180.0.1/80", 93_784],
    ]),
    maps: ["service-ips"],
    handles: new Map([["services", [7, 8]]]),
  });
});

describe("syncs", () => {
  test("a change writes what belongs to its service, and nothing else", async () => {
    const setup = new Setup();
    for (let n = 1; n <= 50; n += 1) {
      setup.put(
        makeService(`svc${n}`, { clusterIP: `10.96.0.${n}` }),
        makeSlice(`svc${n}`, ["10.244.1.5", "10.244.1.6"]),
      );
    }
    await setup.sync();
    setup.put(makeService("svc7", { clusterIP: "10.96.0.7" }), makeSlice("svc7", ["10.244.1.5"]));
    await setup.sync();
    const text = setup.nft.applied.at(-1) ?? "";
    expect(text).toContain(`10.96.0.7 . tcp . 80 comment "ns1/svc7:p80" : goto count-1`);
    expect(text.split("\n").filter((line) => line.includes("10.96.0.") && !line.includes("10.96.0.7 "))).toEqual([]);
    expect(text).not.toContain("chain ip kube-proxy services");
  });

  test("after a failure everything is written in one transaction; what nobody wants is emptied, and deleted later", async () => {
    const setup = new Setup();
    setup.put(makeService("svc1", nodePort), makeSlice("svc1", ["10.244.1.5"]));
    await setup.sync();
    const chain = `service-${portBase("ns1/svc1", { protocol: "tcp", portName: "p80" })}`;
    expect(setup.nft.chains?.get(chain)).toHaveLength(1);
    setup.model.setService("ns1/svc1", undefined);
    setup.nft.failure = new AgentError("Unavailable", "killed");
    await expect(setup.sync()).rejects.toThrow("killed");
    expect(setup.rules.needsFull).toBe(true);
    await setup.sync();
    expect(setup.nft.chains?.get(chain)).toEqual([]);
    await setup.clock.advance(1_000);
    await setup.sync();
    expect(setup.nft.chains?.has(chain)).toBe(false);
  });

  test("a table of another make is replaced as a whole", async () => {
    const setup = new Setup();
    setup.put(makeService("svc1"), makeSlice("svc1", ["10.244.1.5"]));
    await setup.nft.apply("add table ip kube-proxy\nadd map ip kube-proxy service-ips { type mark : verdict ; }\n");
    await setup.sync();
    expect(setup.nft.dump()).toContain("10.96.0.10 . tcp . 80 : goto count-1");
  });

  test("a refusal that says nothing of the table leaves it and its affinity alone, unless it comes again", async () => {
    const setup = new Setup();
    setup.put(makeService("svc1", { sessionAffinity: "ClientIP" }), makeSlice("svc1", ["10.244.1.5"]));
    await setup.sync();
    const isReplaced = () => setup.nft.applied.some((text) => text.includes("delete table"));
    const busy = new AgentError("Invalid", "Could not process rule: Device or resource busy");
    setup.nft.failure = busy;
    await expect(setup.sync(true)).rejects.toThrow("busy");
    expect(isReplaced()).toBe(false);
    await setup.sync();
    expect(isReplaced()).toBe(false);
    for (const isLast of [false, true]) {
      setup.nft.failure = busy;
      const synced = setup.sync(true);
      if (isLast) await synced;
      else await expect(synced).rejects.toThrow("busy");
    }
    expect(isReplaced()).toBe(true);
  });

  test.each([
    ["the table", (nft: FakeNft): void => void (nft.chains = undefined), /no such (table|rule)/],
    ["a chain's rules", (nft: FakeNft) => nft.chains?.set("services", []), /\bservices\b/],
    ["the rules of a service's chain", (nft: FakeNft) => nft.chains?.set(nodePortChain, []), /external-/],
    ["the rules of a shared chain", (nft: FakeNft) => nft.chains?.set("count-1", []), /count-1/],
    ["an element", (nft: FakeNft) => nft.sets.get("service-ips")?.elements.clear(), /service-ips/],
    ["all elements", (nft: FakeNft) => nft.sets.forEach(({ elements }) => elements.clear()), /no element/],
  ] as const)("notices that somebody took away %s", async (_, damage, told) => {
    for (const isKnown of [false, true]) {
      const setup = new Setup();
      setup.put(makeService("svc1"), makeSlice("svc1", ["10.244.1.5"]));
      setup.put(makeService("svc2", { ...nodePort, clusterIP: "10.96.0.11" }), makeSlice("svc2", ["10.244.1.5"]));
      await setup.sync();
      const look = async () => {
        const found = await setup.rules.findDamage(signal);
        await setup.rules.idle();
        return found;
      };
      for (let n = 0; n < (isKnown ? 2 : 0); n += 1) expect(await look()).toBeUndefined();
      damage(setup.nft);
      expect((await look()) ?? (await look())).toMatch(told); // the first look asks for handles
      await setup.sync(true);
      for (let n = 0; n < 2; n += 1) expect(await look()).toBeUndefined();
    }
  });

  test("does not wait for the handles of rules; what is written while they are listed is no damage", async () => {
    const setup = new Setup();
    setup.put(makeService("svc2", nodePort), makeSlice("svc2", ["10.244.1.5"]));
    await setup.sync();
    const { read } = setup.nft;
    const { promise, resolve } = Promise.withResolvers<void>();
    let reads = 0;
    setup.nft.read = async () => {
      reads += 1;
      const before = await read();
      await promise;
      return before;
    };
    for (let n = 0; n < 2; n += 1) expect(await setup.rules.findDamage(signal)).toBeUndefined();
    setup.put(makeService("svc2", { ...nodePort, externalTrafficPolicy: "Local" }), makeSlice("svc2", ["10.244.1.5"]));
    await setup.sync();
    resolve();
    await setup.rules.idle();
    for (let n = 0; n < 2; n += 1) expect(await setup.rules.findDamage(signal)).toBeUndefined();
    expect(reads).toBe(1);
    setup.nft.chains?.set("services", []);
    expect(await setup.rules.findDamage(signal)).toMatch(/services/);
  });

  test("a listing that fails is told, and begun anew", async () => {
    const setup = new Setup();
    setup.put(makeService("svc2", nodePort), makeSlice("svc2", ["10.244.1.5"]));
    await setup.sync();
    const { read } = setup.nft;
    setup.nft.read = async () => {
      setup.nft.read = read;
      throw new AgentError("Unavailable", "somebody else was faster");
    };
    expect(await setup.rules.findDamage(signal)).toBeUndefined();
    await setup.rules.idle();
    await expect(setup.rules.findDamage(signal)).rejects.toThrow("somebody else was faster");
    expect(await setup.rules.findDamage(signal)).toBeUndefined();
    await setup.rules.idle();
    setup.nft.chains?.set("services", []);
    expect(await setup.rules.findDamage(signal)).toMatch(/services/);
  });

  test("does not take its own changes for damage", async () => {
    const setup = new Setup();
    setup.put(makeService("svc2", nodePort), makeSlice("svc2", ["10.244.1.5"]));
    await setup.sync();
    expect(await setup.rules.findDamage(signal)).toBeUndefined();
    setup.put(makeService("svc2", { ...nodePort, externalTrafficPolicy: "Local" }), makeSlice("svc2", []));
    await setup.sync();
    expect(await setup.rules.findDamage(signal)).toBeUndefined();
    setup.model.setService("ns1/svc2", undefined);
    await setup.sync();
    await setup.clock.advance(1_000);
    await setup.sync();
    expect(await setup.rules.findDamage(signal)).toBeUndefined();
  });

  test("another timeout of the affinity makes the sets anew, by a change and by a new start", async () => {
    const setup = new Setup();
    const withTimeout = (timeoutSeconds: number) =>
      makeService("svc1", { sessionAffinity: "ClientIP", sessionAffinityConfig: { clientIP: { timeoutSeconds } } });
    setup.put(withTimeout(60), makeSlice("svc1", ["10.244.1.5", "10.244.1.6"]));
    await setup.sync();
    setup.put(withTimeout(90));
    await setup.sync();
    const timeouts = () => [...setup.nft.dump().matchAll(/timeout (\d+)s/g)].map(([, seconds]) => seconds);
    expect(timeouts()).toEqual(["90", "90"]);
    const [name, set] = [...setup.nft.sets].find(([key]) => key.startsWith("affinity-"))!;
    set.elements.set("192.0.2.9", "");
    setup.rules = setup.newRules();
    await setup.sync();
    expect(setup.nft.sets.get(name)?.elements.has("192.0.2.9")).toBe(true);
    setup.put(withTimeout(30));
    setup.rules = setup.newRules();
    await setup.sync();
    expect(timeouts()).toEqual(["30", "30"]);
  });

  test("a shared chain that is wanted again is not taken for stale", async () => {
    const setup = new Setup();
    setup.put(makeService("svc1"), makeSlice("svc1", ["10.244.1.5"]));
    await setup.sync();
    setup.put(makeService("svc1"), makeSlice("svc1", ["10.244.1.5", "10.244.1.6"]));
    await setup.sync(true); // nobody wants count-1 now
    await setup.clock.advance(500);
    setup.put(makeService("svc1"), makeSlice("svc1", ["10.244.1.6"]));
    await setup.sync();
    await setup.clock.advance(1_000);
    await setup.sync();
    expect(setup.nft.chains?.get("count-1")).toHaveLength(1);
    expect(setup.nft.applied.join("")).not.toContain("delete chain ip kube-proxy count-1");
  });

  test("names that are too long for a comment are cut there", async () => {
    const setup = new Setup();
    const name = "s".repeat(63);
    const service = makeService(
      name,
      { ports: [{ name: "p".repeat(15), port: 80 }] },
      {
        metadata: { namespace: "n".repeat(63), name },
      },
    );
    setup.model.setService(`${"n".repeat(63)}/${name}`, service);
    await setup.sync();
    expect(setup.nft.dump()).toContain("10.96.0.10 . tcp . 80 : goto reject-chain");
  });

  describe("a service that the kernel refuses", () => {
    const refused = /10\.244\.6\.6/;
    async function withRefused(isFull: boolean) {
      const lines: string[] = [];
      const log = pino({ level: "warn" }, { write: (line: string) => void lines.push(line) });
      const setup = new Setup();
      const events: string[] = [];
      const onRefused = (key: string, reason: string) => void events.push(`${key}: ${reason}`);
      setup.rules = new NftablesRules({ nft: setup.nft, clock: setup.clock, log, onRefused });
      setup.nft.refuses = refused;
      for (let n = 1; n <= 20; n += 1) {
        setup.put(makeService(`svc${n}`, { clusterIP: `10.96.0.${n}` }), makeSlice(`svc${n}`, [`10.244.1.${n}`]));
      }
      if (!isFull) await setup.sync();
      setup.put(makeService("svc6", { clusterIP: "10.96.0.6" }), makeSlice("svc6", ["10.244.6.6"]));
      setup.put(makeService("svc7", { clusterIP: "10.96.0.7" }), makeSlice("svc7", ["10.244.1.77"]));
      return { setup, lines, events };
    }

    test.each([
      ["refuses its clients if it had no rules", true],
      ["keeps the rules that it had", false],
    ])("%s, and is told with the line; the others are programmed", async (_, isFull) => {
      const { setup, lines, events } = await withRefused(isFull);
      if (!isFull) await expect(setup.sync()).rejects.toThrow("refused"); // then a full one follows
      await setup.sync();
      expect(setup.nft.dump()).toContain("10.244.1.77 . 8080");
      const expectStandIn = () => {
        if (isFull) expect(setup.nft.dump()).toContain("10.96.0.6 . tcp . 80 : goto reject-chain");
        else expect(setup.nft.dump()).toContain("10.96.0.6 . tcp . 80 . 0 : 10.244.1.6 . 8080");
        expect(setup.nft.dump()).not.toMatch(refused);
      };
      expectStandIn();
      expect(lines.filter((line) => line.includes('"service":"ns1/svc6"') && refused.test(line))).toHaveLength(1);
      expect(lines).toHaveLength(1);
      expect(lines[0]).toContain(isFull ? "its clients are refused" : "it keeps those that it had");
      await setup.sync(true);
      expectStandIn();
      expect(lines).toHaveLength(1);
      expect(events).toHaveLength(1);
      expect(events[0]).toMatch(/^ns1\/svc6: .*10\.244\.6\.6/s);
    });

    test("keeps its last rules over another change that is refused, and until the kernel refuses these, too", async () => {
      const { setup, lines } = await withRefused(false);
      await expect(setup.sync()).rejects.toThrow("refused");
      await setup.sync();
      setup.put(makeService("svc6", { clusterIP: "10.96.0.6" }), makeSlice("svc6", ["10.244.6.6", "10.244.6.66"]));
      await expect(setup.sync()).rejects.toThrow("refused");
      await setup.sync();
      expect(setup.nft.dump()).toContain("10.96.0.6 . tcp . 80 . 0 : 10.244.1.6 . 8080");
      setup.nft.refuses = /10\.244\.(6|1)\.6 /;
      await setup.sync(true);
      expect(setup.nft.dump()).toContain("10.96.0.6 . tcp . 80 : goto reject-chain");
      expect(lines.at(-1)).toContain("its clients are refused");
      expect(lines).toHaveLength(3);
    });

    test("has nothing at all if the kernel does not even take that", async () => {
      const { setup } = await withRefused(true);
      setup.nft.refuses = /10\.96\.0\.6 /;
      await setup.sync();
      expect(setup.nft.dump()).not.toContain("10.96.0.6 ");
      expect(setup.nft.dump()).toContain("10.244.1.77 . 8080");
    });

    test("is tried again from time to time, with the next sync, and told as an event once", async () => {
      const { setup, lines, events } = await withRefused(true);
      await setup.sync();
      await setup.clock.advance(30_000);
      setup.put(makeService("svc8", { clusterIP: "10.96.0.8" }), makeSlice("svc8", ["10.244.1.88"]));
      await expect(setup.sync()).rejects.toThrow("refused");
      await setup.sync();
      expect(setup.nft.dump()).toContain("10.244.1.88 . 8080");
      expect(lines).toHaveLength(2);
      setup.nft.refuses = undefined;
      await setup.sync(true);
      expect(setup.nft.dump()).not.toMatch(refused);
      await setup.clock.advance(60_000);
      setup.put(makeService("svc8", { clusterIP: "10.96.0.8" }), makeSlice("svc8", ["10.244.1.89"]));
      await setup.sync();
      expect(setup.nft.dump()).toMatch(refused);
      expect(events).toHaveLength(1);
    });

    test("is tried again when it has changed", async () => {
      const { setup } = await withRefused(true);
      await setup.sync();
      setup.put(makeService("svc6", { clusterIP: "10.96.0.6" }), makeSlice("svc6", ["10.244.1.66"]));
      await setup.sync();
      expect(setup.nft.dump()).toContain("10.244.1.66 . 8080");
    });
  });

  test("checks look at every element in turn, also while there are changes", async () => {
    const setup = new Setup();
    const put = (n: number, pod: string) => {
      const clusterIP = `10.96.${n >> 8}.${n & 255}`;
      setup.put(makeService(`svc${n}`, { clusterIP }), makeSlice(`svc${n}`, [pod]));
    };
    for (let n = 1; n <= 1_500; n += 1) put(n, "10.244.1.5");
    await setup.sync();
    const asked = new Set<string>();
    const { tryOut } = setup.nft;
    setup.nft.tryOut = async (text) => {
      for (const [, keys = ""] of text.matchAll(/service-ips \{ (.*) \}/g)) {
        for (const key of keys.split(", ")) asked.add(key);
      }
      return await tryOut(text);
    };
    for (let n = 1; n <= 3; n += 1) {
      expect(await setup.rules.findDamage(signal)).toBeUndefined();
      put(n, "10.244.1.6");
      await setup.sync();
    }
    expect(asked.size).toBe(1_500);
  });

  test("a thousand random changes leave what one full sync of the result makes", async () => {
    let seed = 7;
    const random = (below: number): number => {
      seed = (seed * 1_103_515_245 + 12_345) % 2 ** 31;
      return seed % below;
    };
    const setup = new Setup();
    for (let n = 0; n < 1_000; n += 1) {
      const name = `svc${random(12)}`;
      const at = Number(name.slice(3));
      if (random(6) === 0) setup.model.setService(`ns1/${name}`, undefined);
      else {
        const [, spec, extra] = cases[random(cases.length)]!;
        const ports = spec.ports?.map((port) => ({ ...port, nodePort: 30_000 + at }));
        // Now and then two services have the same address.
        const clusterIP = `10.96.0.${random(8) === 0 ? 1 : at}`;
        setup.put(makeService(name, { ...spec, ...(ports === undefined ? {} : { ports }), clusterIP }, extra));
      }
      const endpoints = Array.from({ length: random(4) }, (_, i) => ({
        address: `10.244.1.${10 * at + i}`,
        nodeName: random(2) === 0 ? "n1" : "n2",
        conditions: { ready: random(3) > 0, serving: true, terminating: random(3) === 0 },
      }));
      setup.model.setSlice(`ns1/${name}-a`, random(7) === 0 ? undefined : makeSlice(name, endpoints));
      if (random(5) === 0) setup.nft.failure = new AgentError("Unavailable", "somebody else was faster");
      if (random(2) === 0) await setup.sync().catch(() => {});
      if (random(4) === 0) await setup.clock.advance(1_000);
    }
    setup.nft.failure = undefined;
    await setup.sync();
    await setup.clock.advance(1_000);
    await setup.sync();
    const incremental = setup.nft.dump();

    const fresh = new Setup();
    Object.assign(fresh, { model: setup.model });
    await fresh.sync(true);
    // Shared chains and maps of numbers that nobody has any more wait, empty, for the next full sync.
    const used = (dump: string) => dump.replace(/^map endpoints-\d+ .*\n(?! )|^chain count-\d+\n.*\n/gm, "");
    expect(used(incremental)).toBe(used(fresh.nft.dump()));
  });
});

describe("this machine", () => {
  const commands = (version: string, check = ""): Commands => ({
    run: async (_file: string, args: readonly string[]) => {
      const isVersion = args.includes("--version");
      const failed = !isVersion && check !== "";
      return {
        code: failed ? 1 : 0,
        signal: undefined,
        stdout: isVersion ? version : "",
        stderr: check,
        truncated: false,
        durationMs: 1,
        message: failed ? `nft exited with 1: ${check}` : "nft succeeded",
        ...(failed ? { failure: "exit" as const } : {}),
      } satisfies Awaited<ReturnType<Commands["run"]>>;
    },
    lines: () => Promise.reject(new Error("unused")),
  });
  test.each(["No buffer space available", "Cannot allocate memory", "Interrupted system call"])(
    "may be short of something (%s): that is no refusal, and no damage",
    async (text) => {
      const nft = createNft(commands("", `netlink: Error: Could not process rule: ${text}`), "IPv4");
      const isUnavailable = expect.objectContaining({ code: "Unavailable" });
      await expect(nft.apply("add table ip kube-proxy\n", signal)).rejects.toEqual(isUnavailable);
      await expect(nft.tryOut("add table ip kube-proxy\n", signal)).rejects.toEqual(isUnavailable);
    },
  );

  test.each([
    [true, [], true],
    [false, [], false],
    [true, ["primary"], false],
    [true, ["192.0.2.0/24"], false],
    [true, ["192.0.2.0/24", "127.0.0.0/8"], true],
    [true, ["0.0.0.0/0"], true],
  ])(
    "answers node ports on loopback: localhostNodePorts %s, nodePortAddresses %j: %s",
    (on, nodePortAddresses, want) => {
      const options = { localhostNodePorts: on, nodePortAddresses, nodeIPs: ["192.0.2.1"] };
      expect(relaysLocalhost(options, "IPv4")).toBe(want);
    },
  );

  test.each([
    ["nftables v1.0.6 (Lester Gooch #5)", "5.13.0-1-amd64", "", undefined],
    ["nftables v0.9.8 (E.D.S.)", "6.1.0", "", "needs nft 1.0.1 or later"],
    ["nftables v1.0.6", "5.10.0-8-amd64", "", "needs Linux 5.13 or later"],
    ["nftables v1.0.6", "6.1.0", "Operation not permitted", "the kernel refuses"],
  ])("%s on %s (%s): %s", async (version, kernel, check, problem) => {
    const asked = expectNftables(commands(version, check), signal, kernel);
    if (problem === undefined) await asked;
    else await expect(asked).rejects.toThrow(problem);
  });
});
