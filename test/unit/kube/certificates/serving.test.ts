import { describe, expect, test } from "vitest";
import { createServingCertificate, servingTemplate } from "../../../../agent/kube/certificates/serving.ts";
import type { Node, NodeAddress } from "../../../../agent/kube/types.ts";
import { silentLogger } from "../../../../agent/lib/log.ts";
import type { ServingCertificate } from "../../../../agent/server/port.ts";
import { MemoryStore } from "../../../support/memory-store.ts";
import { FakeClock } from "../fake-clock.ts";
import { until } from "../support.ts";
import { FakeSigner, signFor, temporaryDir } from "./support.ts";

describe("the names of a node's serving certificate", () => {
  const ip = (address: string): NodeAddress => ({ type: "InternalIP", address });
  const cases: { name: string; addresses: NodeAddress[]; allowsDNSOnly?: boolean; ips?: string[]; dns?: string[] }[] = [
    {
      name: "every kind of address",
      addresses: [
        { type: "ExternalDNS", address: "n1.example.com" },
        { type: "Hostname", address: "n1" },
        { type: "InternalDNS", address: "n1.internal" },
        ip("10.0.0.7"),
        { type: "ExternalIP", address: "192.0.2.7" },
        ip("fd00::7"),
      ],
      ips: ["10.0.0.7", "192.0.2.7", "fd00::7"],
      dns: ["n1", "n1.example.com", "n1.internal"],
    },
    {
      name: "a host name that is an address",
      addresses: [{ type: "Hostname", address: "10.0.0.7" }],
      ips: ["10.0.0.7"],
    },
    { name: "one that comes twice", addresses: [ip("10.0.0.7"), ip("10.0.0.7")], ips: ["10.0.0.7"] },
    { name: "an internal IP that is none", addresses: [ip("n1"), ip("10.0.0.7")], ips: ["10.0.0.7"] },
    {
      name: "names alone, where signers take that",
      addresses: [{ type: "Hostname", address: "n1" }],
      allowsDNSOnly: true,
      ips: [],
      dns: ["n1"],
    },
  ];
  test.each(cases)("$name", ({ addresses, allowsDNSOnly = false, ips = [], dns = [] }) => {
    const want = { commonName: "system:node:n1", organizations: ["system:nodes"], dnsNames: dns, ips };
    expect(servingTemplate("n1", addresses, allowsDNSOnly)).toEqual(want);
    expect(servingTemplate("n1", addresses.toReversed(), allowsDNSOnly)).toEqual(want);
  });

  test.each([
    { name: "no address", addresses: [], allowsDNSOnly: true },
    { name: "names alone", addresses: [{ type: "Hostname", address: "n1" } as const], allowsDNSOnly: false },
  ])("$name: nothing to ask for yet", ({ addresses, allowsDNSOnly }) => {
    expect(servingTemplate("n1", addresses, allowsDNSOnly)).toBeUndefined();
  });
});

test("is requested when the node has an address, again when that changes, and not for heartbeats", async () => {
  await using tmp = await temporaryDir();
  const clock = new FakeClock();
  const signer = new FakeSigner();
  const { client, startInformer } = signer.openApi();
  const nodeStore = new MemoryStore<Node>().markSynced();
  const manager = createServingCertificate(
    { certDir: tmp.path, nodeName: "n1", nodeStore, client, startInformer, allowsDNSOnly: false },
    { clock, log: silentLogger },
  );
  const serving: ServingCertificate = manager;
  const put = (address: string, heartbeat: string) =>
    nodeStore.put({
      metadata: { name: "n1", annotations: { heartbeat } },
      status: { addresses: [{ type: "InternalIP", address }] },
    });
  await manager.load();
  const stop = new AbortController();
  const running = manager.run(stop.signal);
  signer.answer = signFor(clock, 86_400_000);
  await clock.advance(10_000);
  expect([serving.current(), signer.requests.length]).toEqual([undefined, 0]);

  put("10.0.0.7", "1");
  await until(() => serving.current() !== undefined);
  expect(signer.requests[0]?.spec).toMatchObject({
    signerName: "kubernetes.io/kubelet-serving",
    usages: ["digital signature", "server auth"],
  });
  put("10.0.0.7", "2");
  put("10.0.0.7", "3");
  await clock.advance(60_000);
  expect(signer.requests).toHaveLength(1);

  let told = 0;
  serving.subscribe(() => {
    told += 1;
  });
  put("10.0.0.8", "4");
  await until(() => told === 1);
  expect(signer.names(1)).toEqual(["10.0.0.8"]);
  expect(manager.current()?.leaf.checkIP("10.0.0.8")).toBe("10.0.0.8");
  await until(() => clock.waiting === 2); // saved, and at rest
  stop.abort();
  await running;
  expect(clock.waiting).toBe(0);
});
