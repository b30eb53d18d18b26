import { expect, test } from "vitest";
import { parseFieldSelector, parseLabelSelector } from "../../support/apiserver/selectors.ts";
import type { ApiObject } from "../../support/apiserver/types.ts";

const object: ApiObject = {
  apiVersion: "v1",
  kind: "Pod",
  metadata: { name: "web", namespace: "ns", labels: { app: "web", "example.com/tier": "front", n: "5" } },
  spec: { nodeName: "n1" },
  involvedObject: { fieldPath: "spec.containers{a,b}" },
};

const labelCases: [selector: string, want: boolean][] = [
  ["", true],
  ["app=web", true],
  ["app==web", true],
  ["app = web , n", true],
  ["app!=web", false],
  ["other!=web", true],
  ["app in (web, db)", true],
  ["app notin (web)", false],
  ["other notin (web)", true],
  ["example.com/tier", true],
  ["!example.com/tier", false],
  ["!other", true],
  ["n>4", true],
  ["n<4", false],
  ["app in (db),n", false],
];
for (const [selector, want] of labelCases) {
  test(`label selector "${selector}" ${want ? "matches" : "does not match"}`, () => {
    expect(parseLabelSelector(selector)(object)).toBe(want);
  });
}

const fieldCases: [selector: string, want: boolean][] = [
  ["metadata.name=web", true],
  ["metadata.namespace=ns,spec.nodeName=n1", true],
  ["spec.nodeName!=n1", false],
  ["status.phase=", true],
  ["status.phase!=Failed", true],
  ["involvedObject.fieldPath=spec.containers{a\\,b}", true],
];
for (const [selector, want] of fieldCases) {
  test(`field selector "${selector}" ${want ? "matches" : "does not match"}`, () => {
    expect(parseFieldSelector(selector)(object)).toBe(want);
  });
}

test("selectors that are none are refused", () => {
  expect(() => parseLabelSelector("a b c")).toThrow("unable to parse requirement");
  expect(() => parseFieldSelector("metadata.name")).toThrow("invalid field selector");
});
