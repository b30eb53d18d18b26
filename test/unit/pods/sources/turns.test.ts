import { expect, test } from "vitest";
import { StaticTurns } from "../../../../agent/pods/sources/turns.ts";
import { podOf } from "../support.ts";
import { staticPodOf } from "./support.ts";

const version = (uid: string) => staticPodOf({}, { uid });
const key = "default/web-node-1";

test("of the static pods of one name one has its turn, and the others follow in the order in which they came", () => {
  const turns = new StaticTurns();
  const [one, two, three] = [version("one"), version("two"), version("three")];
  expect([one, two, three, one].map((pod) => turns.enter(pod))).toEqual([true, false, false, true]);
  expect(turns.started(key)).toBe("one");
  expect(turns.leave(one)).toBe(two);
  expect(turns.started(key)).toBe("two");
  expect(turns.leave(two)).toBe(three);
  expect(turns.leave(three)).toBeUndefined();
  expect(turns.started(key)).toBeUndefined();
});

test("who goes while waiting gets no turn; who is told of twice waits once", () => {
  const turns = new StaticTurns();
  const [one, two, three] = [version("one"), version("two"), version("three")];
  for (const pod of [one, two, two, three]) turns.enter(pod);
  expect(turns.leave(two)).toBeUndefined();
  expect(turns.leave(one)).toBe(three);
  expect(turns.leave(three)).toBeUndefined();
});

test("other names, and pods of the API server, have nothing to wait for", () => {
  const turns = new StaticTurns();
  turns.enter(version("one"));
  expect(turns.enter(staticPodOf({}, { name: "other" }))).toBe(true);
  expect(turns.enter(podOf({}, { name: "web-node-1", namespace: "default" }))).toBe(true);
});
