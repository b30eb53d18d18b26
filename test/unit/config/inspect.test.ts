import { describe, expect, test } from "vitest";
import { inspectHelp, wantsColour } from "../../../agent/config/inspect.ts";
import { type Command, parseCommandLine } from "../../../agent/config/load.ts";
import { fakeHost } from "./support.ts";

const parse = (line: string): Command => parseCommandLine(line.split(" "), fakeHost());
const web = { kind: "explain", rootDir: "/var/lib/kubelet", namespace: "shop", name: "web", output: "text" };
const pods = { kind: "pods", rootDir: "/var/lib/kubelet", namespace: "", output: "text" };

describe("nodelet explain and nodelet pods", () => {
  test.each([
    ["explain pod shop/web", web],
    ["explain pod/web -n shop", web],
    ["explain po web --namespace=shop", web],
    ["explain pod shop/web -n shop", web],
    ["explain pod web", { ...web, namespace: "default" }],
    ["explain pod shop/web -o json --root-dir /data", { ...web, output: "json", rootDir: "/data" }],
    ["pods", pods],
    ["pods -n shop -o json", { ...pods, namespace: "shop", output: "json" }],
  ])("%s", (line, want) => {
    expect(parse(line)).toEqual(want);
  });

  test.each([
    ["explain", "say which pod: nodelet explain pod NAMESPACE/NAME"],
    ["explain pod", "say which pod: nodelet explain pod NAMESPACE/NAME"],
    ["explain pod a/b/c", "say which pod: nodelet explain pod NAMESPACE/NAME"],
    ["explain node web", "say which pod: nodelet explain pod NAMESPACE/NAME"],
    ["explain pod a b", "say which pod: nodelet explain pod NAMESPACE/NAME"],
    ["explain pod shop/web -n test", "--namespace test and the pod's shop/web do not agree"],
    ["explain pod shop/web -o yaml", "--output: must be text or json, not yaml"],
    ["explain pod shop/web --colour", "Unknown option '--colour'; see nodelet explain --help"],
    ["pods web", "nodelet pods takes no web: try nodelet explain pod"],
  ])("%s: an error that says what to do", (line, want) => {
    expect(() => parse(line)).toThrow(want);
  });

  test("--help, whatever else is on the line", () => {
    for (const line of ["explain --help", "pods -h", "explain -h pod a/b/c"]) {
      expect(parse(line)).toEqual({ kind: "help", text: inspectHelp });
    }
    expect(inspectHelp.split("\n").every((text) => text.length <= 100)).toBe(true);
  });

  test("the agent's own flags know nothing of them", () => {
    expect(() => parse("--hostname-override=node1 explain")).toThrow("explain");
  });
});

test("colours are left out where people ask for that", () => {
  expect(wantsColour({})).toBe(true);
  expect(wantsColour({ NO_COLOR: "1" })).toBe(false);
  expect(wantsColour({ TERM: "dumb" })).toBe(false);
});
