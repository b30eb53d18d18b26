import { describe, expect, test, vi } from "vitest";
import { expand } from "../../../agent/lib/expand.ts";
import { expandCommand } from "../../../agent/pods/expand.ts";

const values: Record<string, string> = { X: "x", EMPTY: "", NESTED: "$(X)", "odd name": "odd", "": "nameless" };

describe("expand", () => {
  test.each([
    ["", ""],
    ["plain", "plain"],
    ["$(X)", "x"],
    ["a$(X)b$(X)c", "axbxc"],
    ["$(EMPTY)", ""],
    ["$(UNKNOWN)", "$(UNKNOWN)"],
    ["$$(X)", "$(X)"],
    ["$$$(X)", "$x"],
    ["$$", "$"],
    ["$", "$"],
    ["a$", "a$"],
    ["$X", "$X"],
    ["$(X", "$(X"],
    ["$($(X)", "$($(X)"],
    ["$(NESTED)", "$(X)"],
    ["$(odd name)", "odd"],
    ["$()", "nameless"],
    ["ü$(X)€", "üx€"],
  ])("%s → %s", (input, want) => expect(expand(input, (name) => values[name])).toBe(want));
});

test("expand: what is never closed takes no longer than it is long", () => {
  const lookUp = vi.fn(() => "x");
  const indexOf = vi.spyOn(String.prototype, "indexOf");
  const input = "$(".repeat(1_000);
  try {
    expect(expand(`$(X)${input}`, lookUp)).toBe(`x${input}`);
    // Each search for an end that is not there reads all that follows.
    expect(indexOf.mock.calls.filter(([searched]) => searched === ")")).toHaveLength(1);
  } finally {
    indexOf.mockRestore();
  }
  expect(lookUp).toHaveBeenCalledTimes(1);
});

test("expandCommand: command and args see the final environment, absent ones stay empty", () => {
  const env = new Map([["X", "x"]]);
  expect(expandCommand({ command: ["run", "$(X)"], args: ["$(Y)"] }, env)).toEqual({
    command: ["run", "x"],
    args: ["$(Y)"],
  });
  const binary = new Map([["KEY", Buffer.from([0xff])]]);
  expect(() => expandCommand({ args: ["--key=$(KEY)"] }, binary)).toThrow(
    "command or args use $(KEY), whose value is not UTF-8 text",
  );
  expect(expandCommand({}, env)).toEqual({ command: [], args: [] });
});
