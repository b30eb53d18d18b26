import { describe, expect, test } from "vitest";
import {
  collectsImages,
  type ImageGarbagePolicy,
  type ImageHistory,
  idsInUse,
  noteImages,
  outlivedImages,
  spaceToFree,
  spareImages,
  unusedImages,
} from "../../../agent/node/image-garbage.ts";
import { imageOf } from "./image-support.ts";

const policy: ImageGarbagePolicy = { minAgeMs: 120_000, maxAgeMs: 0, highPercent: 85, lowPercent: 80 };
const hex = (digit: string) => digit.repeat(64);
const ids = (unused: { image: { id: string } }[]) => unused.map(({ image }) => image.id).join(" ");

describe("who stands on an image", () => {
  const web = imageOf(`sha256:${hex("a")}`, {
    repoTags: ["docker.io/library/web:1", "registry.local:5000/web:2"],
    repoDigests: [`docker.io/library/web@sha256:${hex("d")}`],
  });
  const nameless = imageOf(hex("b"), { repoTags: [] });
  const cases: { name: string; reference: string; isUsed: boolean }[] = [
    { name: "its ID", reference: `sha256:${hex("a")}`, isUsed: true },
    { name: "its ID without the algorithm", reference: hex("a"), isUsed: true },
    { name: "a name in full", reference: "registry.local:5000/web:2", isUsed: true },
    { name: "a short name", reference: "web:1", isUsed: true },
    { name: "a digest", reference: `web@sha256:${hex("d")}`, isUsed: true },
    { name: "a digest behind a tag that has moved", reference: `web:9@sha256:${hex("d")}`, isUsed: true },
    { name: "another tag", reference: "web:2", isUsed: false },
    { name: "the same tag with another digest", reference: `web:1@sha256:${hex("e")}`, isUsed: false },
    { name: "no tag, which is another one", reference: "web", isUsed: false },
    { name: "the same name in another registry", reference: "other.local/web:1", isUsed: false },
    { name: "the beginning of its ID", reference: hex("a").slice(0, 12), isUsed: false },
    { name: "what is no name", reference: "Not A Name", isUsed: false },
  ];
  test.each(cases)("$name: $isUsed", ({ reference, isUsed }) => {
    expect([...idsInUse([web, nameless], [reference])]).toEqual(isUsed ? [web.id] : []);
  });

  test("an ID that the runtime tells without its algorithm", () => {
    expect([...idsInUse([web, nameless], [`sha256:${hex("b")}`])]).toEqual([nameless.id]);
  });
});

describe("what is known of images", () => {
  const seen = (firstDetectedMs: number, lastUsedMs?: number): ImageHistory => ({ firstDetectedMs, lastUsedMs });
  const cases: { name: string; known: [string, ImageHistory][]; used: string[]; want: [string, ImageHistory][] }[] = [
    { name: "a new one is detected now", known: [], used: [], want: [["a", seen(1_000)]] },
    { name: "a new one that is in use", known: [], used: ["a"], want: [["a", seen(1_000, 1_000)]] },
    { name: "a known one keeps its age", known: [["a", seen(5, 7)]], used: [], want: [["a", seen(5, 7)]] },
    { name: "a known one is used again", known: [["a", seen(5, 7)]], used: ["a"], want: [["a", seen(5, 1_000)]] },
    { name: "one that went is forgotten", known: [["b", seen(5)]], used: [], want: [["a", seen(1_000)]] },
  ];
  test.each(cases)("$name", ({ known, used, want }) => {
    expect([...noteImages(new Map(known), [imageOf("a")], new Set(used), 1_000)]).toEqual(want);
  });
});

test("the longest unused goes first, then what was detected first; used and pinned images never go", () => {
  const histories = new Map<string, ImageHistory>([
    ["used long ago", { firstDetectedMs: 1, lastUsedMs: 10 }],
    ["used lately", { firstDetectedMs: 1, lastUsedMs: 20 }],
    ["used lately, detected later", { firstDetectedMs: 2, lastUsedMs: 20 }],
    ["never used, new", { firstDetectedMs: 9, lastUsedMs: undefined }],
    ["never used", { firstDetectedMs: 3, lastUsedMs: undefined }],
    ["in use", { firstDetectedMs: 0, lastUsedMs: 30 }],
    ["pinned", { firstDetectedMs: 0, lastUsedMs: undefined }],
  ]);
  const images = [...histories.keys()].reverse().map((id) => imageOf(id, { pinned: id === "pinned" }));
  const unused = unusedImages(images, histories, new Set(["in use"]));
  expect(unused.map(({ image }) => image.id)).toEqual([
    "never used",
    "never used, new",
    "used long ago",
    "used lately",
    "used lately, detected later",
  ]);
});

describe("images that nobody used for too long", () => {
  const old: ImageGarbagePolicy = { ...policy, maxAgeMs: 1_000 };
  const unused = [
    { image: imageOf("never"), firstDetectedMs: 0, lastUsedMs: undefined },
    { image: imageOf("came-lately"), firstDetectedMs: 1_500, lastUsedMs: undefined },
    { image: imageOf("long-ago"), firstDetectedMs: 0, lastUsedMs: 100 },
    { image: imageOf("lately"), firstDetectedMs: 0, lastUsedMs: 1_500 },
  ];
  const cases: { name: string; policy: ImageGarbagePolicy; nowMs: number; want: string }[] = [
    { name: "go", policy: old, nowMs: 2_000, want: "never long-ago" },
    { name: "stay while this process has not looked for so long", policy: old, nowMs: 1_000, want: "" },
    { name: "go one after the other", policy: old, nowMs: 1_100, want: "never" },
    { name: "stay without a highest age", policy, nowMs: 9_000, want: "" },
  ];
  test.each(cases)("$name", ({ policy: limits, nowMs, want }) => {
    expect(ids(outlivedImages(unused, limits, { nowMs, beganMs: 0 }))).toBe(want);
  });
});

test("for want of space go images that were detected long enough ago, however lately they were used", () => {
  const unused = [
    { image: imageOf("new"), firstDetectedMs: 1, lastUsedMs: undefined },
    { image: imageOf("old"), firstDetectedMs: 0, lastUsedMs: 119_999 },
  ];
  expect(ids(spareImages(unused, policy, 120_000))).toBe("old");
  expect(ids(spareImages(unused, { ...policy, minAgeMs: 0 }, 1))).toBe("new old");
});

describe("how much has to go", () => {
  const cases: {
    name: string;
    space: [availableBytes: number, capacityBytes: number];
    limits?: Partial<ImageGarbagePolicy>;
    want: { usedPercent: number; bytesToFree: number } | undefined;
  }[] = [
    {
      name: "at the threshold: down to the lower one",
      space: [150, 1_000],
      want: { usedPercent: 85, bytesToFree: 50 },
    },
    { name: "below it: nothing", space: [160, 1_000], want: undefined },
    { name: "a part of a percent counts as used", space: [159, 1_000], want: { usedPercent: 85, bytesToFree: 41 } },
    { name: "a full disk", space: [0, 1_000], want: { usedPercent: 100, bytesToFree: 200 } },
    { name: "whole bytes", space: [0, 999], want: { usedPercent: 100, bytesToFree: 199 } },
    { name: "more available than there is", space: [2_000, 1_000], want: undefined },
    { name: "100 switches it off", space: [0, 1_000], limits: { highPercent: 100 }, want: undefined },
    {
      name: "everything",
      space: [900, 1_000],
      limits: { highPercent: 1, lowPercent: 0 },
      want: { usedPercent: 10, bytesToFree: 100 },
    },
  ];
  test.each(cases)("$name", ({ space: [availableBytes, capacityBytes], limits = {}, want }) => {
    expect(spaceToFree({ availableBytes, capacityBytes }, { ...policy, ...limits })).toEqual(want);
  });
});

test("only 100 percent without a highest age says that no image ever goes", () => {
  expect(collectsImages(policy)).toBe(true);
  expect(collectsImages({ ...policy, highPercent: 100 })).toBe(false);
  expect(collectsImages({ ...policy, highPercent: 100, maxAgeMs: 1 })).toBe(true);
});
