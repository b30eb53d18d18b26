import { expect, test } from "vitest";
import { addressKey, addressKeys, portKey, portKeys } from "../../../agent/proxy/iptables/keys.ts";
import { type ChainChanges, DispatchTree, leafRulesMax, treeDepthMax } from "../../../agent/proxy/iptables/tree.ts";
import { parseIP } from "../../../agent/proxy/ip.ts";

function entry(ip: string, port = 80) {
  return {
    key: addressKey(parseIP(ip)!.bits, "tcp", port),
    rule: `-p tcp -d ${ip} --dport ${port} -j SVC-${ip}-${port}`,
  };
}

/** Applies a tree's changes to chains, as the kernel would hold them. */
class Mirror {
  readonly chains = new Map<string, readonly string[]>();
  changes: ChainChanges = { writes: new Map(), deletes: new Set() };
  readonly tree: DispatchTree;

  constructor(tree = new DispatchTree("ROOT", "AT-", addressKeys.IPv4)) {
    this.tree = tree;
  }

  /** Returns how many chains were written. */
  apply(): number {
    for (const _ of this.tree.update(this.changes));
    const { writes, deletes } = this.changes;
    for (const [chain, rules] of writes) {
      for (const rule of rules) {
        const target = /-g (\S+)/.exec(rule)?.[1];
        // Chains come before the rules that lead to them.
        if (target !== undefined && !this.chains.has(target)) throw new Error(`${target} is written too late`);
      }
      this.chains.set(chain, rules);
    }
    for (const chain of deletes) this.chains.delete(chain);
    this.changes = { writes: new Map(), deletes: new Set() };
    return writes.size;
  }

  depth(chain = "ROOT"): number {
    const below = (this.chains.get(chain) ?? []).map((rule) => /-g (\S+)/.exec(rule)?.[1]);
    return 1 + Math.max(0, ...below.map((target) => (target === undefined ? 0 : this.depth(target))));
  }
}

function sorted(chains: ReadonlyMap<string, readonly string[]>) {
  return [...chains].sort(([a], [b]) => (a < b ? -1 : 1));
}

test("few entries are a list in the root, in the order of their keys", () => {
  const mirror = new Mirror();
  mirror.tree.insert(entry("10.96.0.2"));
  mirror.tree.insert(entry("10.96.0.1"));
  mirror.apply();
  expect([...mirror.chains]).toEqual([["ROOT", [entry("10.96.0.1").rule, entry("10.96.0.2").rule]]]);
});

test("many entries part where their addresses do", () => {
  const mirror = new Mirror();
  for (let n = 0; n < 16; n++) mirror.tree.insert(entry(`10.96.${n * 16}.1`));
  mirror.apply();
  expect(mirror.chains.get("ROOT")).toEqual([
    "-d 10.96.0.0/18 -g AT-0A600000-18",
    "-d 10.96.64.0/18 -g AT-0A604000-18",
    "-d 10.96.128.0/18 -g AT-0A608000-18",
    "-d 10.96.192.0/18 -g AT-0A60C000-18",
  ]);
});

test("ports of one address part, too", () => {
  const mirror = new Mirror();
  for (let n = 0; n < 32; n++) mirror.tree.insert(entry("10.96.0.1", 8000 + n));
  mirror.apply();
  expect(mirror.chains.get("ROOT")?.[0]).toMatch(
    /^-d 10\.96\.0\.1 -p tcp -m tcp --dport 8000:8\d+ -g AT-[A-Z2-7]{16}$/,
  );
});

test("node ports part by protocol and port", () => {
  const mirror = new Mirror(new DispatchTree("ROOT", "AT-", portKeys));
  for (let n = 0; n < 16; n++) {
    for (const proto of ["tcp", "udp"] as const) {
      mirror.tree.insert({ key: portKey(proto, 30_000 + n), rule: `${proto} ${n}` });
    }
  }
  mirror.apply();
  expect(mirror.chains.get("ROOT")).toEqual([
    expect.stringMatching(/^-p tcp -m tcp --dport 30000:30015 -g AT-/),
    expect.stringMatching(/^-p udp -m udp --dport 30000:30015 -g AT-/),
  ]);
});

test("one entry more writes its leaf alone", () => {
  const mirror = new Mirror();
  for (let n = 0; n < 4_096; n += 4) mirror.tree.insert(entry(`10.96.${n >> 8}.${n & 255}`));
  mirror.apply();
  mirror.tree.insert(entry("10.96.3.1"));
  expect(mirror.apply()).toBeLessThanOrEqual(5); // the leaf, and its parents' and new neighbours' chains if it split
  mirror.tree.remove(entry("10.96.3.1"), mirror.changes);
  expect(mirror.apply()).toBeLessThanOrEqual(5);
});

test("chain names fit and differ", () => {
  const mirror = new Mirror(new DispatchTree("ROOT", "KUBE-SVC-AT-", addressKeys.IPv6));
  for (let n = 0; n < 500; n++) {
    const ip = `fd00:96::${(n % 7).toString(16)}:${(n * 131).toString(16)}`;
    mirror.tree.insert({ key: addressKey(parseIP(ip)!.bits, "udp", 53), rule: ip });
  }
  mirror.apply();
  expect([...mirror.chains.keys()].every((chain) => chain.length <= 28)).toBe(true);
});

test("nobody can make it nest deeper than the kernel takes", () => {
  const mirror = new Mirror();
  // Each split takes one more address away from the rest: the worst shape there is.
  for (let bit = 0; bit < 32; bit++) {
    for (let n = 0; n <= leafRulesMax; n++) {
      const value = (2 ** bit + n * 2 ** Math.max(0, bit - 5)) % 2 ** 32;
      const octets = [24, 16, 8, 0].map((shift) => Math.floor(value / 2 ** shift) % 256);
      mirror.tree.insert(entry(octets.join(".")));
    }
  }
  mirror.apply();
  expect(mirror.depth()).toBe(treeDepthMax + 1);
  const rules = [...mirror.chains.values()].flat().filter((rule) => !rule.includes("-g "));
  expect(rules.length).toBe(mirror.tree.size);
});

test("the chains depend on the entries alone, whatever their history (seeded random)", () => {
  const seed = 20_261_121;
  let state = seed;
  const random = (max: number) => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
    return Math.floor((state / 2 ** 32) * max);
  };
  const mirror = new Mirror();
  const present = new Map<string, ReturnType<typeof entry>>();
  for (let step = 0; step < 3_000; step++) {
    // Sometimes clustered, sometimes far away, sometimes many ports: splits, merges, skipped bits, the depth limit.
    const kind = random(4);
    const ip =
      kind === 0
        ? `10.96.0.${random(64)}`
        : kind === 1
          ? `10.${96 + random(2)}.${random(4)}.${random(256)}`
          : kind === 2
            ? `${1 << random(7)}.${1 << random(8)}.0.${random(4)}`
            : "192.0.2.1";
    const one = entry(ip, kind === 3 ? 1 + random(500) : 80);
    if (present.has(one.rule) && random(3) > 0) {
      present.delete(one.rule);
      mirror.tree.remove(one, mirror.changes);
    } else if (!present.has(one.rule)) {
      present.set(one.rule, one);
      mirror.tree.insert(one);
    }
    if (step === 2_000) {
      for (const [rule, old] of [...present].filter(() => random(10) > 0)) {
        present.delete(rule);
        mirror.tree.remove(old, mirror.changes);
      }
    }
    if (random(3) > 0) continue;
    mirror.apply();
    if (step % 50 !== 0) continue;
    const fresh = new Mirror();
    for (const other of present.values()) fresh.tree.insert(other);
    fresh.apply();
    expect(sorted(mirror.chains), `seed ${seed}, step ${step}`).toEqual(sorted(fresh.chains));
  }
  expect(mirror.tree.size).toBe(present.size);
});
