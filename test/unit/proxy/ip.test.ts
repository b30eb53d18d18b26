import { expect, test } from "vitest";
import {
  canonicalIP,
  contains,
  formatCIDR,
  formatIP,
  hostPort,
  isLoopback,
  parseCIDR,
  parseIP,
} from "../../../agent/proxy/ip.ts";

const addresses: [text: string, want: string | undefined][] = [
  ["10.96.0.1", "10.96.0.1"],
  ["010.096.000.001", "10.96.0.1"],
  ["255.249.199.99", "255.249.199.99"],
  ["256.1.1.1", undefined],
  ["::ffff:10.0.0.1", "10.0.0.1"],
  ["fd00:0:0:0:0:0:0:10", "fd00::10"],
  ["FD00::1:0:0:10", "fd00::1:0:0:10"],
  ["2001:db8:0:1:1:1:1:1", "2001:db8:0:1:1:1:1:1"],
  ["1:0:0:2:0:0:0:3", "1:0:0:2::3"],
  ["::", "::"],
  ["::1", "::1"],
  ["64:ff9b::10.0.0.1", "64:ff9b::a00:1"],
  ["fe80::1%eth0", undefined],
  ["10.0.0.256", undefined],
  ["10.0.0", undefined],
  ["10.0.0.1 ", undefined],
  ["", undefined],
  ["-j DROP", undefined],
];
for (const [text, want] of addresses) {
  test(`parseIP ${JSON.stringify(text)} is ${want}`, () => {
    const ip = parseIP(text);
    expect(ip === undefined ? undefined : formatIP(ip)).toBe(want);
    expect(canonicalIP(text)?.ip).toBe(want);
    expect(canonicalIP(text)?.family).toBe(ip?.family);
  });
}

const cidrs: [text: string, want: string | undefined][] = [
  ["10.96.7.1/16", "10.96.0.0/16"],
  ["0.0.0.0/0", "0.0.0.0/0"],
  ["fd00:1::7/64", "fd00:1::/64"],
  ["::ffff:10.0.0.0/104", "10.0.0.0/8"],
  ["10.0.0.0/010", "10.0.0.0/10"],
  ["10.0.0.0/33", undefined],
  ["10.0.0.0", undefined],
  ["10.0.0.0/-1", undefined],
];
for (const [text, want] of cidrs) {
  test(`parseCIDR ${JSON.stringify(text)} is ${want}`, () => {
    const cidr = parseCIDR(text);
    expect(cidr === undefined ? undefined : formatCIDR(cidr)).toBe(want);
  });
}

test("prefixes contain addresses of their own family only", () => {
  const ip = parseIP("10.1.2.3")!;
  expect(contains(parseCIDR("10.1.0.0/16")!, ip)).toBe(true);
  expect(contains(parseCIDR("10.2.0.0/16")!, ip)).toBe(false);
  expect(contains(parseCIDR("::/0")!, ip)).toBe(false);
});

test("loopback addresses", () => {
  expect(["127.8.0.1", "::1", "10.0.0.1", "::2"].map((text) => isLoopback(parseIP(text)!))).toEqual([
    true,
    true,
    false,
    false,
  ]);
});

test("an IPv6 address with a port is in brackets", () => {
  expect([hostPort("10.0.0.1", 80), hostPort("fd00::1", 80)]).toEqual(["10.0.0.1:80", "[fd00::1]:80"]);
});
