import { randomBytes } from "node:crypto";
import { afterAll, beforeAll, expect, test } from "vitest";
import { exec } from "../../agent/lib/exec.ts";
import { systemClock } from "../../agent/lib/clock.ts";
import { silentLogger } from "../../agent/lib/log.ts";
import { createCommands } from "../../agent/proxy/commands.ts";
import { endpointsOfSmallClusterMax } from "../../agent/proxy/backend.ts";
import { createClientSets, createIpset } from "../../agent/proxy/iptables/ipset.ts";
import { createIptables } from "../../agent/proxy/iptables/exec.ts";
import { IptablesBackend } from "../../agent/proxy/iptables/sync.ts";
import type { Family } from "../../agent/proxy/ip.ts";
import { ServiceModel } from "../../agent/proxy/model.ts";
import { makeService, makeSlice } from "../support/service-objects.ts";

const namespace = `nla-${randomBytes(3).toString("hex")}`;
const signal = new AbortController().signal;

async function ip(...args: string[]): Promise<void> {
  const result = await exec("ip", args, { timeoutMs: 10_000 });
  if (result.failure !== undefined) throw new Error(result.message);
}

beforeAll(() => ip("netns", "add", namespace));
afterAll(() => ip("netns", "del", namespace));

/** Services of every kind, enough of them for the trees to have inner chains. */
function makeModel(family: Family): ServiceModel {
  const isV6 = family === "IPv6";
  const model = new ServiceModel(family, { name: "n1", zone: undefined, ips: [] });
  const pods = ["5", "6", "7"].map((n) => (isV6 ? `fd00::${n}` : `10.244.1.${n}`));
  for (let n = 10; n < 60; n++) {
    const name = `s${n}`;
    const service = makeService(
      name,
      {
        clusterIP: isV6 ? `fd00:96::${n}` : `10.96.0.${n}`,
        type: n % 5 === 0 ? "LoadBalancer" : "NodePort",
        ports: [{ name: "p80", port: 80, nodePort: 30_000 + n, protocol: n % 7 === 0 ? "UDP" : "TCP" }],
        externalIPs: n % 2 === 0 ? [isV6 ? `2001:db8::1${n}` : `198.51.100.${n}`] : [],
        externalTrafficPolicy: n % 10 === 0 ? "Local" : "Cluster",
        internalTrafficPolicy: n % 11 === 0 ? "Local" : "Cluster",
        sessionAffinity: n % 4 === 0 ? "ClientIP" : "None",
        loadBalancerSourceRanges: [isV6 ? "fd01::/16" : "192.0.2.0/24"],
        healthCheckNodePort: 31_000 + n,
      },
      { status: { loadBalancer: { ingress: [{ ip: isV6 ? `2001:db8::2${n}` : `203.0.113.${n}` }] } } },
    );
    const endpoints = pods.map((address, i) => ({ address, nodeName: i === 0 ? "n1" : "n2" }));
    model.setService(`ns1/${name}`, service);
    const ports = [{ name: "p80", port: 8080, protocol: n % 7 === 0 ? ("UDP" as const) : ("TCP" as const) }];
    model.setSlice(`ns1/${name}-a`, makeSlice(name, n % 3 === 0 ? [] : endpoints, { addressType: family, ports }));
  }
  return model;
}

const layouts = [
  { layout: "without ipset", hasIpset: false, isLarge: false, chainRE: /^KUBE-SEP-/, rule: "2" },
  { layout: "with ipset", hasIpset: true, isLarge: false, chainRE: /^KUBE-SEP-/, rule: "1" },
  { layout: "in a large cluster", hasIpset: true, isLarge: true, chainRE: /^KUBE-SVC-/, rule: "3" },
] as const;
const flavours = (["IPv4", "IPv6"] as const).flatMap((family) =>
  (["nft", "legacy"] as const).map((flavour) => ({ family, flavour })),
);

for (const { family, flavour } of flavours) {
  for (const { layout, hasIpset, isLarge, chainRE, rule } of layouts) {
    test(`a new start leaves right rules alone, and repairs a wrong one: ${family}, ${flavour}, ${layout}`, async () => {
      const commands = createCommands(["nsenter", `--net=/run/netns/${namespace}`]);
      const iptables = await createIptables(commands, family, flavour, signal);
      const model = makeModel(family);
      const texts: string[] = [];
      const start = async () => {
        texts.length = 0;
        const noting = {
          ...iptables,
          restore: async (text: string, stop: AbortSignal) => {
            texts.push(text);
            await iptables.restore(text, stop);
          },
        };
        const backend = new IptablesBackend({
          iptables: noting,
          ipset: hasIpset ? createIpset(commands, family) : undefined,
          clientSets: hasIpset ? createClientSets(commands, family) : undefined,
          clock: systemClock,
          log: silentLogger,
        });
        const localPods = family === "IPv6" ? "fd00::/64" : "10.244.0.0/16";
        await backend.sync(
          {
            isFull: true,
            keys: model.keys(),
            describe: (key) => model.describe(key),
            endpointCount: () => (isLarge ? endpointsOfSmallClusterMax + 1 : model.endpointCount()),
            fixed: {
              family,
              mark: "0x004000",
              nodePortIPs: undefined,
              hasLocalhostNodePorts: family === "IPv4",
              dropsInvalid: true,
              hasRandomFully: true,
            },
            render: {
              family,
              masqueradeAll: false,
              localPods: { match: `-s ${localPods}`, notMatch: `! -s ${localPods}` },
            },
          },
          signal,
        );
        const written = [...texts.join("").matchAll(/^:(\S+)/gm)].map((found) => found[1] ?? "");
        // One shows whether rules can ask sets, and goes at once.
        return written.filter((chain) => chain !== "KUBE-SVC-PROBE");
      };
      const first = await start();
      const ofServices = first.filter((chain) => /^KUBE-(SVC|SVL|SEP|EXT|FW)-/.test(chain));
      expect(ofServices.length).toBeGreaterThan(100);

      const second = await start();
      // Chains whose rules iptables lists in quite another way are written again; they are few.
      expect(second.filter((chain) => /^KUBE-(SVC|SVL|SEP|EXT|FW|SERVICES|NODEPORTS)/.test(chain))).toEqual([]);

      const damaged = ofServices.find((chain) => chainRE.test(chain)) ?? "";
      const command = `${family === "IPv4" ? "iptables" : "ip6tables"}-${flavour}`;
      const result = await commands.run(command, ["-t", "nat", "-D", damaged, rule], { timeoutMs: 10_000 });
      expect(result.failure).toBeUndefined();
      expect((await start()).filter((chain) => chainRE.test(chain))).toEqual([damaged]);
    });
  }
}
