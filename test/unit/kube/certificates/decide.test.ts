import { describe, expect, test } from "vitest";
import {
  attemptRetryMs,
  decideExpiry,
  decideRotation,
  exitWithoutMs,
  rotationTimeMs,
} from "../../../../agent/kube/certificates/decide.ts";
import { signingTimeoutMs } from "../../../../agent/kube/certificates/signing.ts";

const yearMs = 365 * 24 * 3_600_000;
const current = { notBeforeMs: 0, notAfterMs: yearMs, rotateAtMs: 0.8 * yearMs };

describe("when to replace a certificate", () => {
  test.each([
    { share: 0, want: 0.7 * yearMs },
    { share: 0.5, want: 0.8 * yearMs },
    { share: 1, want: 0.9 * yearMs },
  ])("at $share of the span it is 70 to 90 % of its life", ({ share, want }) => {
    expect(rotationTimeMs(current, share)).toBeCloseTo(want, -1);
  });

  test("one that was backdated by more than its life is not replaced at once", () => {
    const backdated = { notBeforeMs: -300_000, notAfterMs: 20_000 };
    expect(rotationTimeMs(backdated, 0.5)).toBeLessThan(0);
    expect(rotationTimeMs(backdated, 0.5, 0)).toBe(16_000);
  });

  test.each([
    { name: "not known what to ask for", input: { hasTemplate: false, current: undefined }, want: { kind: "wait" } },
    { name: "none", input: { current: undefined }, want: { kind: "request", why: "there is none" } },
    { name: "young", nowMs: 0.5 * yearMs, want: { kind: "rest", restMs: 0.3 * yearMs } },
    { name: "due", nowMs: 0.8 * yearMs, want: { kind: "request", why: "it will expire" } },
    { name: "expired", nowMs: yearMs, want: { kind: "request", why: "it has expired" } },
    {
      name: "another name wanted",
      input: { current: { ...current, mismatch: "it lacks n2" } },
      want: { kind: "request", why: "it lacks n2" },
    },
    { name: "given", input: { isForced: true }, want: { kind: "request", why: "it was given for the start only" } },
    {
      name: "from the future, after the clock was set back",
      nowMs: -yearMs,
      want: { kind: "rest", restMs: 1.8 * yearMs },
    },
  ])("$name", ({ input = {}, nowMs = 0, want }) => {
    expect(decideRotation({ hasTemplate: true, current, isForced: false, ...input }, nowMs)).toEqual(want);
  });
});

test("failed attempts: 2 s doubling, then every 32 s, with a tenth of jitter", () => {
  const rests = [1, 2, 3, 4, 5, 6, 50].map((failures) => attemptRetryMs(failures, () => 0));
  expect(rests).toEqual([2_000, 4_000, 8_000, 16_000, 32_000, 32_000, 32_000]);
  expect(attemptRetryMs(1, () => 1)).toBe(2_200);
});

test("limits are the reference's", () => {
  expect({ exitWithoutMs, signingTimeoutMs }).toEqual({ exitWithoutMs: 300_000, signingTimeoutMs: 900_000 });
});

describe("whether an agent can go on without a certificate", () => {
  const without = { isValid: false, hasExpired: false, withoutMs: 0, isServerResponsive: true };
  test.each([
    { name: "it has one", input: { isValid: true, withoutMs: 1e9 }, want: "fine" },
    { name: "none yet", input: {}, want: "fine" },
    { name: "none for less than 5 min", input: { withoutMs: 299_999 }, want: "fine" },
    { name: "none for 5 min", input: { withoutMs: 300_000 }, want: "exit" },
    { name: "none for 5 min, server away", input: { withoutMs: 300_000, isServerResponsive: false }, want: "warn" },
    { name: "expired", input: { hasExpired: true }, want: "exit" },
    { name: "expired, server away", input: { hasExpired: true, isServerResponsive: false }, want: "warn" },
  ])("$name: $want", ({ input, want }) => {
    expect(decideExpiry({ ...without, ...input }).kind).toBe(want);
  });
});
