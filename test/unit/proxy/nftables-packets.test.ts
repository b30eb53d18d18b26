import { describe, expect, test } from "vitest";
import { silentLogger } from "../../../agent/lib/log.ts";
import { IptablesBackend } from "../../../agent/proxy/iptables/sync.ts";
import { type Family, parseIP } from "../../../agent/proxy/ip.ts";
import { ServiceModel } from "../../../agent/proxy/model.ts";
import { NftablesRules, type NftablesSyncRequest } from "../../../agent/proxy/nftables/sync.ts";
import { FakeIptables } from "../../support/fake-iptables.ts";
import { FakeNft } from "../../support/fake-nft.ts";
import { traceNft } from "../../support/nft-tracer.ts";
import { caseAddresses, caseLocalIPs, type PacketCase, packetCases } from "../../support/packet-cases.ts";
import { type Packet, tracePacket, type TraceResult } from "../../support/packet-tracer.ts";
import { makeService, makeSlice } from "../../support/service-objects.ts";
import { FakeClock } from "../volumes/support.ts";

const signal = new AbortController().signal;
const mark = "0x004000";

function modelOf({ spec, extra, endpoints = [] }: PacketCase): ServiceModel {
  const model = new ServiceModel("IPv4", { name: "n1", zone: undefined, ips: [parseIP(caseAddresses.nodeIP)!] });
  model.setService("ns1/web", makeService("web", spec, extra));
  model.setSlice("ns1/web-a", makeSlice("web", endpoints));
  return model;
}

function requestOf(model: ServiceModel) {
  return {
    isFull: true,
    keys: model.keys(),
    describe: (key: string) => model.describe(key),
    endpointCount: () => model.endpointCount(),
  };
}

async function programNft(
  model: ServiceModel,
  { masqueradeAll = false, hasDetector = true, nodePortIPs, serviceCIDRs = [] }: NonNullable<PacketCase["about"]> = {},
  family: Family = "IPv4",
): Promise<FakeNft> {
  const nft = new FakeNft();
  const [ip, pods] = family === "IPv4" ? ["ip", "10.244.0.0/16"] : ["ip6", "fd00:244::/32"];
  const context: Pick<NftablesSyncRequest, "fixed" | "render"> = {
    fixed: {
      family,
      mark,
      masqueradeAll,
      notFromLocalPods: hasDetector ? `${ip} saddr != ${pods}` : undefined,
      nodePortIPs,
      serviceCIDRs,
    },
    render: { family, mark, fromLocalPods: hasDetector ? `${ip} saddr ${pods}` : undefined },
  };
  const rules = new NftablesRules({ nft, clock: new FakeClock(), log: silentLogger });
  await rules.sync({ ...requestOf(model), ...context }, signal);
  return nft;
}

async function programIptables(
  model: ServiceModel,
  about: NonNullable<PacketCase["about"]> = {},
): Promise<FakeIptables> {
  const { masqueradeAll = false, hasDetector = true, nodePortIPs } = about;
  const iptables = new FakeIptables();
  await new IptablesBackend({ iptables, ipset: undefined, clock: new FakeClock(), log: silentLogger }).sync(
    {
      ...requestOf(model),
      fixed: {
        family: "IPv4",
        mark,
        nodePortIPs: nodePortIPs === undefined ? undefined : [...nodePortIPs],
        hasLocalhostNodePorts: true,
        dropsInvalid: true,
        hasRandomFully: true,
      },
      render: {
        family: "IPv4",
        masqueradeAll,
        localPods: hasDetector ? { match: "-s 10.244.0.0/16", notMatch: "! -s 10.244.0.0/16" } : undefined,
      },
    },
    signal,
  );
  return iptables;
}

function fateOf({ verdict, dnat, isMasqueraded }: TraceResult): string {
  return dnat === undefined || verdict !== "ACCEPT" ? verdict : `${dnat}${isMasqueraded ? " m" : ""}`;
}

const toVIP: Packet = { src: caseAddresses.pod, dst: caseAddresses.clusterIP, dport: 80, proto: "tcp", iface: "veth1" };

describe("packets have the same fate in both modes, but for what is listed", () => {
  test.each(packetCases)("$name", async (about) => {
    const model = modelOf(about);
    const localIPs = [...caseLocalIPs, ...(about.about?.nodePortIPs ?? [])];
    const iptables = await programIptables(model, about.about);
    const nft = await programNft(model, about.about);
    for (const [packet, want, nftables = want] of about.packets) {
      // Without an interface it was made here.
      const { iface, ...rest } = { dst: toVIP.dst, dport: 80, proto: "tcp" as const, src: toVIP.src, ...packet };
      const full: Packet = iface === undefined ? rest : { ...rest, iface };
      const text = JSON.stringify(full);
      expect(fateOf(tracePacket(iptables.tables, full, { localIPs })), `iptables ${text}`).toBe(want);
      expect(fateOf(traceNft(nft, full, { localIPs })), `nftables ${text}`).toBe(nftables);
    }
  });
});

test("the endpoints get equal shares, with and without affinity", async () => {
  const endpoints = ["10.1.0.1", "10.1.0.2", "10.1.0.3"];
  for (const sessionAffinity of ["None", "ClientIP"] as const) {
    const nft = await programNft(modelOf({ name: "", spec: { sessionAffinity }, endpoints, packets: [] }));
    const chosen = [0, 1, 2].map((n) => {
      const src = `10.244.1.${n}`;
      return traceNft(nft, { ...toVIP, src }, { random: () => n }).dnat;
    });
    expect(chosen).toEqual(endpoints.map((ip) => `${ip}:8080`));
  }
});

test("affinity keeps a client with its endpoint", async () => {
  const nft = await programNft(
    modelOf({ name: "", spec: { sessionAffinity: "ClientIP" }, endpoints: ["10.1.0.1", "10.1.0.2"], packets: [] }),
  );
  expect(traceNft(nft, toVIP, { random: () => 0 }).dnat).toBe("10.1.0.1:8080");
  expect(traceNft(nft, toVIP, { random: () => 1 }).dnat).toBe("10.1.0.1:8080");
  expect(traceNft(nft, { ...toVIP, src: "10.244.1.77" }, { random: () => 1 }).dnat).toBe("10.1.0.2:8080");
});

test("IPv6", async () => {
  const model = new ServiceModel("IPv6", { name: "n1", zone: undefined, ips: [] });
  const ports = [{ name: "p80", port: 80, nodePort: 30_080 }];
  model.setService("ns1/web", makeService("web", { type: "NodePort", clusterIP: "fd00:96::10", ports }));
  model.setSlice("ns1/web-a", makeSlice("web", ["fd00:244::5"], { addressType: "IPv6" }));
  const nft = await programNft(model, {}, "IPv6");
  const packet: Packet = { src: "fd00:244::9", dst: "fd00:96::10", proto: "tcp", dport: 80, iface: "veth1" };
  const localIPs = ["::1", "2001:db8::1"];
  expect(fateOf(traceNft(nft, packet, { localIPs }))).toBe("[fd00:244::5]:8080");
  expect(fateOf(traceNft(nft, { ...packet, src: "2001:db8::2" }, { localIPs }))).toBe("[fd00:244::5]:8080 m");
  const toNode = { ...packet, src: "2001:db8::2", dst: "2001:db8::1", dport: 30_080 };
  expect(fateOf(traceNft(nft, toNode, { localIPs }))).toBe("[fd00:244::5]:8080 m");
  expect(fateOf(traceNft(nft, { ...toNode, dst: "::1" }, { localIPs }))).toBe("ACCEPT");
});

test("a packet visits a handful of rules, however many services there are", async () => {
  const model = new ServiceModel("IPv4", { name: "n1", zone: undefined, ips: [] });
  for (let n = 0; n < 2_000; n += 1) {
    model.setService(`ns1/s${n}`, makeService(`s${n}`, { clusterIP: `10.96.${n >> 8}.${n & 255}` }));
    model.setSlice(`ns1/s${n}-a`, makeSlice(`s${n}`, ["10.244.1.5", "10.244.1.6"]));
  }
  const nft = await programNft(model);
  // To a service: the gate of source ranges (2), to the services (1), masquerading and the address (2), the endpoint (1).
  expect(traceNft(nft, { ...toVIP, dst: "10.96.7.7" }).visited.nat).toBeLessThanOrEqual(6);
  expect(traceNft(nft, { ...toVIP, dst: "203.0.113.9" }).visited.nat).toBeLessThanOrEqual(6);
});
