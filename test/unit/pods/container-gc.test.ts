import { describe, expect, test } from "vitest";
import {
  deadContainersKept,
  deadContainersToRemove,
  type DeadContainerLimits,
  type RemainsUse,
} from "../../../agent/pods/container-gc.ts";
import type { ContainerSummary } from "../../../agent/runtime/port.ts";
import { containerOf, exited } from "./support.ts";

const defaults: DeadContainerLimits = { perContainer: 1, total: -1, ageMsMin: 0 };
const now = 100_000;
// Dead instances `app-0`, `app-1`, …, each a second younger than the one before.
const dead = (name: string, count: number, podUID = "u1") =>
  Array.from({ length: count }, (_, attempt) =>
    exited({ name, podUID, attempt, id: `${name}-${attempt}`, createdAtMs: 1_000 * attempt }),
  );

function removed(
  containers: ContainerSummary[],
  limits: Partial<DeadContainerLimits> = {},
  use: RemainsUse | "nobody's" = "needed",
): string[] {
  const doomed = deadContainersToRemove(
    containers,
    { ...defaults, ...limits },
    () => (use === "nobody's" ? undefined : use),
    now,
  );
  return [...doomed.values()].flat().sort();
}

describe("of each container", () => {
  test("one dead instance stays beside the running one", () => {
    const running = containerOf({ name: "app", attempt: 3, createdAtMs: 3_000 });
    expect(removed([...dead("app", 3), running])).toEqual(["app-0", "app-1"]);
  });
  test("more stay if wanted", () => expect(removed(dead("app", 5), { perContainer: 3 })).toEqual(["app-0", "app-1"]));
  test("all stay with a negative number", () => expect(removed(dead("app", 5), { perContainer: -1 })).toEqual([]));
  test("none stays with 0, but for the one that the next decision rests on", () => {
    expect(removed(dead("app", 2), { perContainer: 0 })).toEqual(["app-0"]);
    expect(removed([...dead("app", 2), containerOf({ attempt: 2, createdAtMs: 9_000 })], { perContainer: 0 })).toEqual([
      "app-0",
      "app-1",
    ]);
    expect(removed(dead("app", 2), { perContainer: 0 }, "shown")).toEqual(["app-0", "app-1"]);
  });
  test("young ones stay", () => {
    expect(removed(dead("app", 4), { ageMsMin: now - 500 })).toEqual([]);
    expect(removed(dead("app", 4), { ageMsMin: now - 2_000 })).toEqual(["app-0", "app-1"]);
  });
  test("an instance after the clock was set back is the newer one all the same", () => {
    const later = exited({ attempt: 1, id: "later", createdAtMs: 0 });
    const earlier = exited({ attempt: 0, id: "earlier", createdAtMs: 50_000 });
    expect(removed([earlier, later])).toEqual(["earlier"]);
  });
});

describe("on the whole node", () => {
  const many = [...dead("a", 4), ...dead("b", 4, "u2")];
  test("the same number of each stays", () => {
    expect(removed(many, { perContainer: -1, total: 4 }, "shown")).toEqual(["a-0", "a-1", "b-0", "b-1"]);
  });
  test("the oldest go if one of each is too many", () => {
    const three = [
      ...dead("a", 1),
      exited({ name: "b", id: "b", createdAtMs: 5 }),
      exited({ name: "c", id: "c", createdAtMs: 9 }),
    ];
    expect(removed(three, { total: 1 }, "shown")).toEqual(["a-0", "b"]);
  });
  test("what decisions rest on stays", () =>
    expect(removed(many, { total: 0 })).not.toEqual(expect.arrayContaining(["a-3", "b-3"])));
  test("nothing goes below the limit", () => expect(removed(many, { perContainer: -1, total: 8 })).toEqual([]));
});

test("of an evicted pod nothing stays", () =>
  expect(removed(dead("app", 2), {}, "useless")).toEqual(["app-0", "app-1"]));
test("pods that nobody holds are somebody else's business", () =>
  expect(removed(dead("app", 3), {}, "nobody's")).toEqual([]));

test.each([
  [1, 1],
  [0, 1],
  [-1, 1],
  [3, 3],
])("with %d for each, a running pod keeps %d at once", (perContainer, want) => {
  expect(deadContainersKept({ ...defaults, perContainer })).toBe(want);
});
