import { describe, expect, test } from "vitest";
import { addressesOf, type CNIResult, parseResult, renderResult } from "../../../cni/result.ts";
import { isAtLeast, negotiate, type SpecVersion } from "../../../cni/version.ts";

const noDNS = { nameservers: [], search: [], options: [] };
const full: CNIResult = {
  interfaces: [
    { name: "veth1", mac: "02:00:00:00:00:01" },
    { name: "eth0", mac: "02:00:00:00:00:02", mtu: 1400, sandbox: "/run/netns/a" },
  ],
  ips: [
    { address: "10.1.0.5/24", gateway: "10.1.0.1", interface: 1 },
    { address: "fd00::5/64", gateway: "fd00::1", interface: 1 },
  ],
  routes: [{ dst: "0.0.0.0/0", gw: "10.1.0.1", mtu: 1300, table: 100 }, { dst: "::/0" }],
  dns: { nameservers: ["10.0.0.10"], domain: "local", search: ["a.local"], options: ["ndots:5"] },
};

const asJSON = (value: unknown): unknown => JSON.parse(JSON.stringify(value));

describe("parseResult", () => {
  test("1.1.0 with everything", () => {
    const raw = renderResult(full, "1.1.0");
    expect(raw["cniVersion"]).toBe("1.1.0");
    expect(parseResult(asJSON(raw), "0.1.0")).toEqual({ version: "1.1.0", result: full });
  });

  test("0.2.0 has an address of each family, with routes of its own", () => {
    const raw = {
      cniVersion: "0.2.0",
      ip4: { ip: "10.1.0.5/24", gateway: "10.1.0.1", routes: [{ dst: "0.0.0.0/0" }] },
      ip6: { ip: "fd00::5/64", routes: [{ dst: "::/0", gw: "fd00::1" }] },
      dns: { nameservers: ["10.0.0.10"] },
    };
    expect(parseResult(raw, "1.0.0")).toEqual({
      version: "0.2.0",
      result: {
        interfaces: [],
        ips: [{ address: "10.1.0.5/24", gateway: "10.1.0.1" }, { address: "fd00::5/64" }],
        routes: [{ dst: "0.0.0.0/0" }, { dst: "::/0", gw: "fd00::1" }],
        dns: { ...noDNS, nameservers: ["10.0.0.10"] },
      },
    });
  });

  test("one without a version has the configuration's", () => {
    const empty = { interfaces: [], ips: [], routes: [], dns: noDNS };
    expect(parseResult({}, "0.4.0")).toEqual({ version: "0.4.0", result: empty });
    expect(parseResult({ cniVersion: "", ips: null, dns: {} }, "1.0.0")).toEqual({ version: "1.0.0", result: empty });
  });

  const wrong: { raw: unknown; want: string }[] = [
    { raw: [], want: "the result must be an object, is a list" },
    { raw: { cniVersion: "7.0.0" }, want: 'cniVersion: "7.0.0" is not supported' },
    { raw: { ips: {} }, want: "ips: must be a list, is an object" },
    { raw: { ips: [{ address: "10.1.0.5" }] }, want: 'ips[0].address: "10.1.0.5" is no address with a prefix length' },
    { raw: { ips: [{ address: "10.1.0.5/33" }] }, want: "ips[0].address" },
    { raw: { ips: [{}] }, want: "ips[0].address: must be set" },
    { raw: { ips: [{ address: "10.1.0.5/24", gateway: "x" }] }, want: 'ips[0].gateway: "x" is no address' },
    { raw: { ips: [{ address: "10.1.0.5/24", interface: "0" }] }, want: "ips[0].interface: must be an integer" },
    { raw: { interfaces: [{}] }, want: "interfaces[0].name: must be set" },
    { raw: { routes: [{ dst: "all" }] }, want: "routes[0].dst" },
    { raw: { dns: { search: "a" } }, want: "dns.search: must be a list, is a string" },
  ];
  for (const { raw, want } of wrong) {
    test(`refuses ${JSON.stringify(raw)}`, () => expect(() => parseResult(raw, "1.0.0")).toThrow(want));
  }
});

describe("renderResult", () => {
  const cases: { version: SpecVersion; want: object }[] = [
    {
      version: "1.0.0",
      want: {
        interfaces: [full.interfaces[0], { name: "eth0", mac: "02:00:00:00:00:02", sandbox: "/run/netns/a" }],
        ips: full.ips,
        routes: [{ dst: "0.0.0.0/0", gw: "10.1.0.1" }, { dst: "::/0" }],
        dns: full.dns,
      },
    },
    {
      version: "0.4.0",
      want: {
        interfaces: [full.interfaces[0], { name: "eth0", mac: "02:00:00:00:00:02", sandbox: "/run/netns/a" }],
        ips: [
          { version: "4", ...full.ips[0] },
          { version: "6", ...full.ips[1] },
        ],
        routes: [{ dst: "0.0.0.0/0", gw: "10.1.0.1" }, { dst: "::/0" }],
        dns: full.dns,
      },
    },
    {
      version: "0.1.0",
      want: {
        ip4: { ip: "10.1.0.5/24", gateway: "10.1.0.1", routes: [{ dst: "0.0.0.0/0", gw: "10.1.0.1" }] },
        ip6: { ip: "fd00::5/64", gateway: "fd00::1", routes: [{ dst: "::/0" }] },
        dns: full.dns,
      },
    },
  ];
  for (const { version, want } of cases) {
    test(`as ${version}`, () => expect(asJSON(renderResult(full, version))).toEqual({ cniVersion: version, ...want }));
  }

  test("no DNS settings, no dns", () => {
    expect(renderResult({ ...full, dns: { nameservers: [], search: [], options: [] } }, "1.1.0")).not.toHaveProperty(
      "dns",
    );
  });
});

describe("addressesOf", () => {
  test("those of the interface, in order, without prefix length", () => {
    expect(addressesOf(full, "eth0")).toEqual(["10.1.0.5", "fd00::5"]);
    expect(addressesOf(full, "net1")).toEqual([]);
  });
  test("those that name no interface", () => {
    const ips = [
      { address: "10.1.0.5/24" },
      { address: "fd00::5/64", interface: -1 },
      { address: "10.9.0.1/24", interface: 9 },
    ];
    expect(addressesOf({ ...full, ips }, "eth0")).toEqual(["10.1.0.5", "fd00::5"]);
  });
});

describe("negotiate", () => {
  const old = { type: "old", supported: ["0.3.1", "0.4.0"] };
  const recent = { type: "recent", supported: ["0.4.0", "1.0.0", "1.1.0"] };
  const silent = { type: "silent", supported: undefined };
  test("the newest that all speak", () => {
    expect(negotiate(["0.4.0", "1.1.0", "1.0.0"], [recent])).toEqual({ version: "1.1.0" });
    expect(negotiate(["0.4.0", "1.0.0", "1.1.0"], [recent, old, silent])).toEqual({ version: "0.4.0" });
    expect(negotiate(["1.1.0"], [silent])).toEqual({ version: "1.1.0" });
    // The configuration was written for the first.
    expect(negotiate(["0.4.0", "1.0.0", "1.1.0"], [recent, silent])).toEqual({ version: "0.4.0" });
    expect(negotiate(["1.0.0", "0.4.0", "1.1.0"], [silent])).toEqual({ version: "1.0.0" });
  });
  test("names the plugin that is in the way", () => {
    expect(negotiate(["1.0.0"], [recent, old])).toEqual({
      problem: expect.stringContaining(
        'plugin type="old" does not support config version "1.0.0" (it supports 0.3.1, 0.4.0)',
      ),
    });
  });
  test("versions are ordered by age, not as text", () => {
    expect(isAtLeast("1.0.0", "0.4.0")).toBe(true);
    expect(isAtLeast("0.3.1", "0.4.0")).toBe(false);
  });
});
