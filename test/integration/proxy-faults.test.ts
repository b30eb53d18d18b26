import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { systemClock } from "../../agent/lib/clock.ts";
import { exec } from "../../agent/lib/exec.ts";
import { silentLogger } from "../../agent/lib/log.ts";
import { untilAborted } from "../../agent/lib/loop.ts";
import { IptablesChains } from "../../agent/node/iptables-chains.ts";
import { type Commands, createCommands } from "../../agent/proxy/commands.ts";
import { syncBurst } from "../../agent/proxy/family.ts";
import { cleanupIptables } from "../../agent/proxy/iptables/cleanup.ts";
import { createIptables } from "../../agent/proxy/iptables/exec.ts";
import { observeFlavours } from "../../agent/proxy/iptables/flavour.ts";
import { clear, pod1, pod2, ports, publish, slicePorts, vip } from "../support/proxy-scenarios.ts";
import { RunningProxy } from "../support/running-proxy.ts";
import { makeService, makeSlice } from "../support/service-objects.ts";
import { TestNet, until } from "../support/test-net.ts";

/** What happens to iptables-restore before it runs. */
interface Fault {
  /** Changes its input. */
  spoil?: (text: string) => string;
  /** Kills it so soon after its start; how many more times. */
  kill?: { afterSeconds: number; times: number };
}

for (const flavour of ["nft", "legacy"] as const) {
  describe(`iptables-${flavour}`, () => {
    let net: TestNet;
    let place: TestNet;
    let running: RunningProxy;
    let fault: Fault;
    let dir: string;
    let restores: number;
    const iptables = (...args: string[]) => net.onNode(`iptables-${flavour}`, ["-w", "5", ...args]);
    const ipv4 = () => running.proxy.stats().find(({ family }) => family === "IPv4")!;

    beforeAll(async () => {
      dir = await mkdtemp(join(tmpdir(), "proxy-faults-"));
      net = await TestNet.create();
      // A lock of its own: the machine's is shared by all network namespaces.
      const lock = `XTABLES_LOCKFILE=${dir}/lock`;
      const real = createCommands(["nsenter", `--net=/run/netns/${net.prefix}-node`, "env", lock]);
      const run: Commands["run"] = async (file, args, options) => {
        const stdin = String(options.stdin ?? "");
        if (!file.endsWith("-restore") || stdin.includes("\n-S ")) return await real.run(file, args, options);
        restores += 1;
        const text = fault.spoil?.(stdin) ?? stdin;
        if (fault.kill === undefined || fault.kill.times <= 0) {
          return await real.run(file, args, { ...options, stdin: text });
        }
        fault.kill.times -= 1;
        const limit = ["-s", "KILL", `${fault.kill.afterSeconds}`, file, ...args];
        return await real.run("timeout", limit, { ...options, stdin: text });
      };
      place = Object.create(net, { commands: { value: { run, lines: real.lines } } }) as TestNet;
    });

    beforeEach(async () => {
      fault = {};
      restores = 0;
      running = new RunningProxy(place, { iptablesFlavour: flavour, syncPeriodMs: 2_000 }).markSynced();
      await running.settled();
    });

    afterEach(async () => {
      fault = {};
      await clear({ net, running });
      await running.stop();
    });

    afterAll(async () => {
      await net?.[Symbol.asyncDispose]();
      await rm(dir, { recursive: true });
    });

    const answers =
      (who = "pod1") =>
      async () =>
        (await net.pod2.ask("tcp", vip, 80, 200)).startsWith(who);

    test("what nobody changed is not written again", async () => {
      const nodePorts = ports.map((port, i) => ({ ...port, nodePort: 30_080 + i }));
      await publish({ net, running }, "web", { type: "NodePort", clusterIP: vip, ports: nodePorts }, [pod1]);
      for (let n = 0; n < 40; n++) {
        await publish({ net, running }, `s${n}`, { clusterIP: `10.96.1.${n}` }, n % 2 === 0 ? [] : [pod1]);
      }
      const { fullSyncs } = ipv4();
      const before = restores;
      await sleep(5_000); // two looks at least
      expect(ipv4().fullSyncs).toBe(fullSyncs);
      expect(restores).toBe(before);
    });

    const harms: { name: string; harm: () => Promise<unknown> }[] = [
      { name: "a deleted jump", harm: () => iptables("-t", "nat", "-F", "PREROUTING") },
      { name: "a flushed chain", harm: () => iptables("-t", "nat", "-F", "KUBE-SERVICES") },
      { name: "a flushed root of the tree", harm: () => iptables("-t", "nat", "-F", "KUBE-SVC-AT") },
      { name: "a rule in front", harm: () => iptables("-t", "nat", "-I", "KUBE-SERVICES", "-j", "RETURN") },
      {
        name: "an edited rule",
        harm: () => iptables("-t", "nat", "-R", "KUBE-SERVICES", "1", "-d", "192.0.2.77", "-j", "RETURN"),
      },
      { name: "a member of the set", harm: () => net.onNode("ipset", ["del", "KUBE-SERVICE-IPS", `${vip},tcp:80`]) },
    ];
    test.each(harms)("$name is mended, and what is not ours stays", async ({ harm }) => {
      await iptables("-t", "nat", "-N", "FOREIGN").catch(() => {});
      await iptables("-t", "nat", "-A", "OUTPUT", "-j", "FOREIGN");
      await publish({ net, running }, "web", { clusterIP: vip }, [pod1]);
      expect(await net.pod2.ask("tcp", vip, 80)).toMatch(/^pod1 /);
      await harm();
      await until("the service is back", answers(), 15_000);
      expect(await iptables("-t", "nat", "-S", "OUTPUT")).toContain("-j FOREIGN");
      await iptables("-t", "nat", "-D", "OUTPUT", "-j", "FOREIGN");
    });

    test("a chain that a foreign rule refers to holds up no other service, and goes when the rule does", async () => {
      await publish({ net, running }, "old", { clusterIP: "10.96.1.1" }, [pod1]);
      const chain = /:(KUBE-SEP-\w+)/.exec(await net.onNode(`iptables-${flavour}-save`, ["-t", "nat"]))?.[1] ?? "";
      await iptables("-t", "nat", "-A", "OUTPUT", "-d", "192.0.2.99", "-j", chain);
      const { failures } = ipv4();
      running.services.remove("ns1/old");
      await publish({ net, running }, "web", { clusterIP: vip }, [pod1]);
      await until("the service answers", answers(), 15_000);
      await running.settled();
      await publish({ net, running }, "web", { clusterIP: vip }, [pod2]);
      await until("the change is there", answers("pod2"), 15_000);
      await running.settled();
      expect(ipv4().failures).toBe(failures);
      expect(await iptables("-t", "nat", "-S", chain)).toBe(`-N ${chain}\n`);
      await iptables("-t", "nat", "-D", "OUTPUT", "-d", "192.0.2.99", "-j", chain);
      expect(await cleanupIptables(net.commands, silentLogger, AbortSignal.timeout(60_000))).toEqual([]);
      expect(await net.onNode(`iptables-${flavour}-save`, ["-t", "nat"])).not.toContain(chain);
    }, 60_000);

    test("thousands of rules of somebody else's are no damage", async () => {
      const blocked = Array.from(
        { length: 12_000 },
        (_, n) => `-A INPUT -s 198.18.${n >> 8}.${n & 255} -m comment --comment "${"blocked ".repeat(8)}" -j DROP\n`,
      );
      await publish({ net, running }, "web", { clusterIP: vip }, [pod1]);
      const rules = ["-w", "5", "--noflush"];
      const stdin = `*filter\n${blocked.join("")}COMMIT\n`;
      const added = await net.commands.run(`iptables-${flavour}-restore`, rules, { timeoutMs: 60_000, stdin });
      expect(added.failure).toBeUndefined();
      try {
        const { fullSyncs } = ipv4();
        const before = restores;
        await sleep(5_000); // two looks at least
        expect([ipv4().fullSyncs, restores]).toEqual([fullSyncs, before]);
        await iptables("-D", "INPUT", "-j", "KUBE-FIREWALL");
        await until("the jump is back", async () => ipv4().fullSyncs > fullSyncs, 15_000);
      } finally {
        const removal = stdin.replaceAll("-A INPUT", "-D INPUT");
        await net.commands.run(`iptables-${flavour}-restore`, rules, { timeoutMs: 60_000, stdin: removal });
      }
    }, 90_000);

    test("a text killed half-way is repeated, and all of it is there in the end", async () => {
      fault.kill = { afterSeconds: 0.001, times: 2 };
      await publish({ net, running }, "web", { clusterIP: vip }, [pod1]).catch(() => {});
      await until("the service answers", answers(), 15_000);
      expect(fault.kill.times).toBeLessThan(2);
    });

    const spoils: { name: string; spoil: (line: string) => string }[] = [
      {
        name: "the tool",
        spoil: (line) => `${line.replace(/-j DNAT.*/, "")}-m set --match-set NO-SUCH-SET src -j RETURN`,
      },
      { name: "the kernel", spoil: (line) => line.replace("-p tcp", "-p sctp") },
    ];
    test.each(spoils)("a service that $name refuses leaves the others alone", async ({ spoil }) => {
      const text = (input: string) =>
        input
          .split("\n")
          .map((line) =>
            line.includes("--to-destination 10.244.1.66:") && line.includes("-p tcp") ? spoil(line) : line,
          )
          .join("\n");
      fault.spoil = text;
      running.services.put(makeService("bad", { ports, clusterIP: "10.96.0.66" }));
      running.endpointSlices.put(makeSlice("bad", ["10.244.1.66"], { ports: slicePorts }));
      for (let n = 0; n < 30; n++) {
        running.services.put(makeService(`s${n}`, { ports, clusterIP: `10.96.2.${n}` }));
        running.endpointSlices.put(makeSlice(`s${n}`, [pod2], { ports: slicePorts }));
      }
      await publish({ net, running }, "web", { clusterIP: vip }, [pod1]);
      await until("the first of the others answers", answers());
      await until("the last one does", async () => (await net.pod1.ask("tcp", "10.96.2.29", 80)).startsWith("pod2"));
      expect(await net.onNode(`iptables-${flavour}-save`, ["-t", "nat"])).not.toContain("ns1/bad");
      // It is mended by a change of its own.
      running.endpointSlices.put(makeSlice("bad", [pod1], { ports: slicePorts }));
      await until("it answers", async () => (await net.pod2.ask("tcp", "10.96.0.66", 80)).startsWith("pod1"));
    });

    test("sets of the right names and the wrong kind do not matter", async () => {
      await running.stop();
      await publishNothing();
      for (const set of ["KUBE-SERVICE-IPS", "KUBE-SERVICE-IPS-NEW"]) {
        await net.onNode("ipset", ["destroy", set]).catch(() => {});
      }
      await net.onNode("ipset", ["create", "KUBE-SERVICE-IPS", "hash:ip"]);
      await net.onNode("ipset", ["create", "KUBE-SERVICE-IPS-NEW", "hash:ip,port", "maxelem", "1"]);
      running = new RunningProxy(place, { iptablesFlavour: flavour }).markSynced();
      await publish({ net, running }, "web", { clusterIP: vip }, [pod1]);
      expect(await net.pod2.ask("tcp", vip, 80)).toMatch(/^pod1 /);
      await until("the set is used", async () =>
        (await net.onNode("ipset", ["list", "KUBE-SERVICE-IPS"])).includes(`${vip},tcp:80`),
      );
    });

    test("of five thousand updates the last one counts, and few of them are written", async () => {
      await running.stop();
      running = new RunningProxy(place, { iptablesFlavour: flavour, minSyncPeriodMs: 500 }).markSynced();
      for (let n = 0; n < 50; n++) running.services.put(makeService(`s${n}`, { ports, clusterIP: `10.96.3.${n}` }));
      await running.settled();
      const before = ipv4().syncs;
      const startedAt = performance.now();
      for (let n = 0; n < 5_000; n++) {
        running.endpointSlices.put(
          makeSlice(`s${n % 50}`, [n < 4_950 ? `10.244.1.${n % 200}` : pod2], { ports: slicePorts }),
        );
        if (n % 100 === 0) await sleep(1);
      }
      await running.settled();
      const seconds = (performance.now() - startedAt) / 1_000;
      expect(ipv4().syncs - before).toBeLessThanOrEqual(syncBurst + 2 + seconds / 0.5);
      expect(ipv4().failures).toBe(0);
      for (const n of [0, 49]) expect(await net.pod1.ask("tcp", `10.96.3.${n}`, 80)).toMatch(/^pod2 /);
    });

    test("clients of a service with many endpoints stay where they were first", async () => {
      const names = Array.from({ length: 10 }, (_, n) => 100 + n);
      for (const [pod, peer] of [
        ["pod1", net.pod1],
        ["pod2", net.pod2],
      ] as const) {
        for (const n of names) {
          const host = `10.244.${pod.slice(-1)}.${n}`;
          const args = [`--net=/run/netns/${net.prefix}-${pod}`, "ip", "addr", "add", `${host}/24`, "dev", "eth0"];
          await exec("nsenter", args, { timeoutMs: 10_000 });
          await peer.request({ op: "serve", name: `${pod}-${n}`, host, port: 8080 });
        }
      }
      const addresses = names.flatMap((n) => [`10.244.1.${n}`, `10.244.2.${n}`]);
      await publish({ net, running }, "web", { clusterIP: vip, sessionAffinity: "ClientIP" }, addresses);
      expect(await net.onNode("ipset", ["list", "-name"])).toContain("KUBE-AFF-");
      const first = (await net.client.ask("tcp", vip, 80)).split(" ")[0] ?? "";
      for (let n = 0; n < 10; n++) expect((await net.client.ask("tcp", vip, 80)).split(" ")[0]).toBe(first);
      // A new agent forgets nobody.
      await running.stop();
      const { services, endpointSlices } = running;
      running = new RunningProxy(place, { iptablesFlavour: flavour });
      running.services.put(...services.list());
      running.endpointSlices.put(...endpointSlices.list());
      running.markSynced();
      await running.settled();
      expect((await net.client.ask("tcp", vip, 80)).split(" ")[0]).toBe(first);
      // The endpoint goes: the client finds another one, and stays there.
      const [pod = "", n = ""] = first.split("-");
      const gone = `10.244.${pod.slice(-1)}.${n}`;
      running.endpointSlices.put(
        makeSlice(
          "web",
          addresses.filter((ip) => ip !== gone),
          { ports: slicePorts },
        ),
      );
      await running.settled();
      const second = (await net.client.ask("tcp", vip, 80)).split(" ")[0] ?? "";
      expect(second).not.toBe(first);
      for (let i = 0; i < 5; i++) expect((await net.client.ask("tcp", vip, 80)).split(" ")[0]).toBe(second);
      // Without affinity no set is left.
      await publish({ net, running }, "web", { clusterIP: vip }, [pod1]);
      await until(
        "the sets of clients are gone",
        async () => !(await net.onNode("ipset", ["list", "-name"])).includes("KUBE-AFF-"),
      );
    });

    test("a UDP client loses the pods of a service that is deleted", async () => {
      const send = (text: string) => net.client.request({ op: "send", host: vip, port: 80, text, localPort: 5_556 });
      const hears = async () => (await net.pod1.request({ op: "received" })) !== "[]";
      await publish({ net, running }, "web", { clusterIP: vip }, [pod1]);
      await until("the pod hears the client", () => send("1").then(hears));
      // Deleted first: its endpoints are there for a moment longer.
      running.services.remove("ns1/web");
      await running.settled();
      await until("the pod hears nothing any more", async () => {
        await send("2");
        await sleep(50);
        return !(await hears());
      });
    });

    test("the kubelet's chains are there in the same kind of tables, are left alone and come back", async () => {
      const signal = new AbortController().signal;
      const keepOnce = async () => {
        const stop = new AbortController();
        let resting = 0;
        // A family rests when all of it is there.
        const sleepOnce = async () => {
          resting += 1;
          if (resting === 2) stop.abort();
          await untilAborted(stop.signal);
        };
        const clock = { ...systemClock, sleep: sleepOnce };
        const open = (family: "IPv4" | "IPv6") => createIptables(net.commands, family, flavour, signal);
        await new IptablesChains({ clock, log: silentLogger, open }).run(stop.signal);
      };
      const saved = async () => {
        const text = await net.onNode(`iptables-${flavour}-save`, []);
        return text.split("\n").filter((line) => /KUBE-(IPTABLES-HINT|KUBELET-CANARY|FIREWALL)/.test(line));
      };
      await keepOnce();
      const want = await saved();
      expect(want.filter((line) => line.startsWith(":KUBE-KUBELET-CANARY"))).toHaveLength(3);
      expect(want.filter((line) => line.startsWith(":KUBE-IPTABLES-HINT"))).toHaveLength(1);
      expect(want.filter((line) => line.includes("-j KUBE-FIREWALL"))).toHaveLength(2);
      await keepOnce();
      expect(await saved()).toEqual(want);
      for (const verb of ["-F", "-X"]) await iptables("-t", "mangle", verb).catch(() => {});
      await keepOnce();
      expect((await saved()).sort()).toEqual([...want].sort());
      const evidence = await observeFlavours(net.commands, signal);
      expect(evidence.find((one) => one.flavour === flavour)?.hasHint).toBe(true);
    });

    // iptables-nft has no lock: the kernel serialises, and the tool repeats what collides.
    test("a lock that somebody holds for long is waited for; no storm of full syncs follows", async () => {
      await publish({ net, running }, "web", { clusterIP: vip }, [pod1]);
      const { fullSyncs } = ipv4();
      const before = restores;
      const holder = exec("flock", [`${dir}/lock`, "sleep", "7"], { timeoutMs: 30_000 }); // longer than the tool waits
      await sleep(200);
      running.endpointSlices.put(makeSlice("web", [pod2], { ports: slicePorts }));
      await holder;
      await until(
        "the change is there",
        async () => (await net.pod1.ask("tcp", vip, 80, 200)).startsWith("pod2"),
        15_000,
      );
      await running.settled();
      expect(ipv4().failures > 0).toBe(flavour === "legacy");
      expect(ipv4().fullSyncs - fullSyncs).toBeLessThanOrEqual(2);
      expect(restores - before).toBeLessThan(10);
    }, 40_000);

    async function publishNothing(): Promise<void> {
      for (const table of ["nat", "filter"]) for (const verb of ["-F", "-X"]) await iptables("-t", table, verb);
    }
  });
}
