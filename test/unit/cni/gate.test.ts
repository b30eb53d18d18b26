import { describe, expect, test } from "vitest";
import { Gate, type Operation, operationsMax, setUpsMax, waitingMax } from "../../../cni/gate.ts";
import { settle } from "../kube/fake-clock.ts";

/** Operations that run until they are told to end; says which run. */
function operations(gate: Gate) {
  const running = new Map<string, () => void>();
  const start = async (
    name: string,
    key: string | undefined,
    signal?: AbortSignal,
    kind: Operation["kind"] = "take-down",
  ) => {
    const work = async () => {
      const { promise, resolve } = Promise.withResolvers<void>();
      running.set(name, resolve);
      await promise;
      running.delete(name);
    };
    await (key === undefined ? gate.runAlone(signal, work) : gate.run({ key, kind }, signal, work));
  };
  return {
    start,
    running: async () => {
      await settle();
      return [...running.keys()];
    },
    end: async (name: string) => {
      running.get(name)?.();
      await settle();
    },
  };
}

describe("Gate", () => {
  test("one at a time for a container, in order; others beside it", async () => {
    const { start, running, end } = operations(new Gate());
    const all = [start("a1", "a"), start("a2", "a"), start("b1", "b"), start("a3", "a")];
    expect(await running()).toEqual(["a1", "b1"]);
    await end("a1");
    expect(await running()).toEqual(["b1", "a2"]);
    await end("a2");
    expect(await running()).toEqual(["b1", "a3"]);
    await end("b1");
    await end("a3");
    await Promise.all(all);
  });

  test("set-ups that hang leave room for what ends", async () => {
    const { start, running, end } = operations(new Gate());
    const names = Array.from({ length: setUpsMax + 1 }, (_, i) => `c${i}`);
    const all = names.map(async (name) => start(name, name, undefined, "set-up"));
    all.push(start("gone", "gone"));
    expect(await running()).toEqual([...names.slice(0, setUpsMax), "gone"]);
    for (const name of ["gone", ...names]) await end(name);
    await Promise.all(all);
  });

  test("no more than the limit at the same time", async () => {
    const { start, running, end } = operations(new Gate());
    const names = Array.from({ length: operationsMax + 2 }, (_, i) => `c${i}`);
    const all = names.map(async (name) => start(name, name));
    expect(await running()).toHaveLength(operationsMax);
    await end("c3");
    expect(await running()).toHaveLength(operationsMax);
    expect(await running()).toContain(`c${operationsMax}`);
    for (const name of names) await end(name);
    for (const name of names) await end(name);
    await Promise.all(all);
  });

  test("collection waits for quiet, lets pods go first, and has it for itself", async () => {
    const { start, running, end } = operations(new Gate());
    const all = [start("a", "a"), start("gc", undefined), start("b", "b")];
    expect(await running()).toEqual(["a", "b"]);
    await end("a");
    await end("b");
    expect(await running()).toEqual(["gc"]);
    all.push(start("c", "c"));
    expect(await running()).toEqual(["gc"]);
    await end("gc");
    expect(await running()).toEqual(["c"]);
    await end("c");
    await Promise.all(all);
  });

  test("one that waits can be canceled, and the next takes its place", async () => {
    const { start, running, end } = operations(new Gate());
    const stop = new AbortController();
    const first = start("a1", "a");
    const second = start("a2", "a", stop.signal);
    const third = start("a3", "a");
    stop.abort();
    await expect(second).rejects.toMatchObject({ code: "Canceled" });
    await end("a1");
    expect(await running()).toEqual(["a3"]);
    await end("a3");
    await Promise.all([first, third]);
    await expect(start("a4", "a", stop.signal)).rejects.toMatchObject({ code: "Canceled" });
  });

  test("one that fails makes room", async () => {
    const gate = new Gate();
    await expect(
      gate.run({ key: "a", kind: "take-down" }, undefined, async () => Promise.reject(new Error("no"))),
    ).rejects.toThrow("no");
    await expect(gate.runAlone(undefined, async () => Promise.reject(new Error("no")))).rejects.toThrow("no");
    expect(await gate.run({ key: "a", kind: "take-down" }, undefined, async () => Promise.resolve(1))).toBe(1);
  });

  test("a queue that never moves takes no more", async () => {
    const gate = new Gate();
    const stop = new AbortController();
    const { start, end } = operations(gate);
    const first = start("a", "a");
    const waiting = Array.from({ length: waitingMax }, async () =>
      gate.run({ key: "a", kind: "take-down" }, stop.signal, async () => Promise.resolve()).catch(() => undefined),
    );
    await expect(
      gate.run({ key: "b", kind: "take-down" }, undefined, async () => Promise.resolve()),
    ).rejects.toMatchObject({
      code: "TooManyRequests",
    });
    stop.abort();
    await Promise.all(waiting);
    await end("a");
    await first;
  });
});
