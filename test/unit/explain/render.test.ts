import { stripVTControlCharacters } from "node:util";
import { describe, expect, test } from "vitest";
import { renderPods } from "../../../agent/explain/render-pods.ts";
import { renderExplanation, renderUnknown } from "../../../agent/explain/render.ts";
import { durationText, harmless, wrapped } from "../../../agent/explain/text.ts";
import type { Explanation } from "../../../agent/pods/explain.ts";
import { at, entryOf, explanationOf, lineOf } from "./support.ts";

const style = { columns: 80, isColoured: false };
const digest = `registry.example/team/app@sha256:${"0123456789abcdef".repeat(4)}`;

const stories: { name: string; explanation: Explanation }[] = [
  { name: "running", explanation: explanationOf() },
  {
    name: "missing-configmap",
    explanation: explanationOf({
      state: "ContainerCreating",
      phase: "Pending",
      since: at(0),
      ready: 0,
      containers: [{ name: "app", kind: "regular", state: "waiting: ContainerCreating", ready: false, restarts: 0 }],
      waitsFor: [
        {
          what: "volume config (configMap)",
          why: 'configmap "app-config" not found',
          next: "tried again at once when it appears",
          since: at(2),
          nextTry: at(94_200),
          tries: 9,
        },
      ],
      timeline: [
        entryOf(0, "seen"),
        entryOf(1, "admitted"),
        entryOf(2, "volume", { subject: "kube-api-access-x7k2p", tookMs: 11 }),
        entryOf(2, "volume", {
          subject: "config",
          state: "failed",
          tookMs: 1,
          detail: 'configmap "app-config" not found',
          times: 9,
          lastAt: at(84_000),
        }),
        entryOf(2, "sandbox", { tookMs: 182 }),
      ],
    }),
  },
  {
    name: "image-backoff",
    explanation: explanationOf({
      state: "ImagePullBackOff",
      phase: "Pending",
      since: at(1_500),
      ready: 0,
      containers: [
        { name: "setup", kind: "init", state: "exited 0 (Completed)", ready: true, restarts: 0 },
        { name: "app", kind: "regular", state: "waiting: ImagePullBackOff", ready: false, restarts: 0 },
      ],
      waitsFor: [
        {
          what: "container app",
          why: `ImagePullBackOff: Back-off pulling image "${digest}": ErrImagePull: failed to authorize: 401 Unauthorized`,
          next: "",
          since: at(1_100),
          nextTry: at(161_000),
        },
      ],
      timeline: [
        ...explanationOf().timeline.slice(0, 4),
        entryOf(1_100, "image", {
          subject: "app",
          state: "failed",
          tookMs: 390,
          detail: "failed to authorize: 401 Unauthorized",
          times: 4,
          lastAt: at(81_000),
        }),
      ],
      omitted: 3,
    }),
  },
  {
    name: "crash-loop",
    explanation: explanationOf({
      state: "CrashLoopBackOff",
      since: at(62_000),
      ready: 0,
      restarts: 3,
      containers: [{ name: "app", kind: "regular", state: "waiting: CrashLoopBackOff", ready: false, restarts: 3 }],
      waitsFor: [
        {
          what: "container app",
          why: 'crashed: exit code 1 (Error), "no database at db:5432"; restarted 3 times',
          next: "kubectl logs -n shop web-0 -c app --previous",
          since: at(62_000),
          nextTry: at(102_000),
        },
      ],
      timeline: [
        ...explanationOf().timeline.slice(0, 4),
        entryOf(891, "start", { subject: "app", tookMs: 55, times: 4, lastAt: at(61_000) }),
        entryOf(1_900, "exit", {
          subject: "app",
          state: "failed",
          tookMs: 1_020,
          detail: "exit code 1 (Error)",
          times: 4,
          lastAt: at(62_000),
        }),
      ],
    }),
  },
  {
    name: "terminating",
    explanation: explanationOf({
      state: "Terminating",
      since: at(80_000),
      waitsFor: [
        {
          what: "container app",
          why: "its preStop hook has not ended yet",
          next: "killed in 20s at the latest",
          since: at(80_010),
        },
      ],
      timeline: [
        ...explanationOf().timeline,
        entryOf(80_000, "deleted", { detail: "grace 30 s" }),
        entryOf(80_010, "preStop", { subject: "app", state: "running" }),
      ],
    }),
  },
  {
    name: "rejected",
    explanation: explanationOf({
      state: "OutOfcpu",
      phase: "Failed",
      ready: 0,
      message: "Pod was rejected: Node didn't have enough resource: cpu, requested: 500000, used: 0, capacity: 2000",
      containers: [{ name: "app", kind: "regular", state: "waiting", ready: false, restarts: 0 }],
      timeline: [
        entryOf(0, "seen"),
        entryOf(2, "OutOfcpu", { state: "failed", detail: "Node didn't have enough cpu" }),
      ],
    }),
  },
];

describe("an explanation", () => {
  test.each(stories)("$name", async ({ name, explanation }) => {
    const text = renderExplanation(explanation, style);
    await expect(text).toMatchFileSnapshot(`golden/${name}.txt`);
    expect(text.split("\n").filter((line) => line.length > style.columns)).toEqual([]);
  });

  test("has colours where they are wanted, and the same words", () => {
    const [, { explanation }] = stories as [unknown, (typeof stories)[number]];
    const coloured = renderExplanation(explanation, { ...style, isColoured: true });
    expect(coloured).toContain("\u001b[31m");
    expect(stripVTControlCharacters(coloured)).toBe(renderExplanation(explanation, style));
  });

  test("lets no container write to the terminal", () => {
    const evil = "\u001b]0;owned\u0007\u001b[2Jdone\u202e\r\n";
    const text = renderExplanation(
      explanationOf({
        waitsFor: [{ what: evil, why: evil, next: evil }],
        timeline: [entryOf(0, "exit", { subject: evil, detail: evil })],
      }),
      style,
    );
    expect(text).not.toMatch(/(?!\n)[\p{Cc}\p{Cf}]/u);
  });
});

describe("a pod that is not there", () => {
  const unknown = {
    version: 1,
    kind: "unknown",
    node: "node1",
    now: at(90_000),
    isStarting: false,
    agentWaitsFor: "",
    similar: new Array<string>(),
  } as const;
  const wanted = { namespace: "shop", name: "web" };

  test("and never was", () => {
    expect(renderUnknown({ ...unknown, similar: ["shop/web-0", "test/web"] }, wanted, style)).toBe(
      "There is no pod shop/web on this node (node1).\n" +
        "Is one of these meant? shop/web-0, test/web\n" +
        "It may not exist, be bound to another node, or not be scheduled yet:\n" +
        "  kubectl get pod -n shop web -o wide\n",
    );
  });

  test("any more", () => {
    const timeline = [entryOf(0, "seen"), entryOf(2_000, "deleted", { detail: "grace 30 s" })];
    expect(renderUnknown({ ...unknown, ended: { uid: "u1", timeline, omitted: 0 } }, wanted, style)).toBe(
      "There is no pod shop/web on this node (node1).\n" +
        "A pod of this name was here and is gone.\n\n" +
        "Timeline from 2026-11-21 15:33:02 UTC\n" +
        "  +0.000s            seen\n" +
        "  +2.000s            deleted: grace 30 s\n",
    );
  });

  test("because the agent has just started", () => {
    const agentWaitsFor = "the container runtime to answer";
    expect(renderUnknown({ ...unknown, isStarting: true, agentWaitsFor }, wanted, style)).toBe(
      "The agent does not know all of its pods yet: it waits for the container runtime\nto answer (see its log).\n",
    );
  });

  test("because the API server has not told of it", () => {
    const text = renderUnknown({ ...unknown, agentWaitsFor: "the API server" }, wanted, style);
    expect(text).toContain("it waits for the API server");
  });
});

describe("the list of pods", () => {
  const answer = { version: 1, node: "node1", now: at(90_000), isStarting: false, agentWaitsFor: "" } as const;
  const pods = [
    lineOf(),
    lineOf({
      name: "web-1",
      state: "CrashLoopBackOff",
      ready: 0,
      since: at(60_000),
      waitsFor: "container app: crashed: exit code 1 (Error), no database",
    }),
    lineOf({ namespace: "kube-system", name: "dns", containers: 2 }),
  ];

  test("fits the terminal", async () => {
    const text = renderPods({ ...answer, pods }, { isColoured: false, columns: 80 });
    await expect(text).toMatchFileSnapshot("golden/pods.txt");
    expect(text.split("\n").every((line) => line.length <= 80)).toBe(true);
  });

  test("is complete where no terminal is", () => {
    const text = renderPods({ ...answer, pods }, { isColoured: false, columns: undefined });
    expect(text).toContain("exit code 1 (Error), no database");
  });

  test("says why it is empty", () => {
    const plain = { isColoured: false, columns: 80 };
    expect(renderPods({ ...answer, pods: [] }, plain)).toBe("No pods on this node (node1).\n");
    const waiting = { ...answer, agentWaitsFor: "the API server" };
    const note = "The agent does not know all of its pods yet: it waits for the API server (see\nits log).\n";
    expect(renderPods({ ...waiting, isStarting: true, pods: [] }, plain)).toBe(note);
    expect(renderPods({ ...waiting, pods }, plain).endsWith(`\n${note}`)).toBe(true);
  });
});

test.each([
  [0, "0ms"],
  [999, "999ms"],
  [4_250, "4.2s"],
  [12_000, "12s"],
  [72_000, "1m12s"],
  [11_100_000, "3h5m"],
  [187_200_000, "2d4h"],
  [-5, "0ms"],
])("a duration of %d ms is %s", (ms, want) => {
  expect(durationText(ms)).toBe(want);
});

test("a text is broken between words, and words that are too long anywhere", () => {
  expect(wrapped("one two three", 7)).toEqual(["one two", "three"]);
  expect(wrapped("a 0123456789 b", 4)).toEqual(["a", "0123", "4567", "89 b"]);
  expect(wrapped("", 10)).toEqual([""]);
});

test("a harmless text has no controls", () => {
  expect(harmless(" a\u0000b\tc\u2066 ")).toBe("a b c");
});
