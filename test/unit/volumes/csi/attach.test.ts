import { describe, expect, test } from "vitest";
import type { ApiClient } from "../../../../agent/kube/port.ts";
import type { Node, VolumeAttachment } from "../../../../agent/kube/types.ts";
import { AgentError } from "../../../../agent/lib/errors.ts";
import {
  attachObstacle,
  attachPatienceMs,
  attachPendingMs,
  type AttachVerdict,
  judgeAttachment,
  waitForAttach,
} from "../../../../agent/volumes/csi/attach.ts";
import { attachmentName, uniqueVolumeName } from "../../../../agent/volumes/csi/paths.ts";
import { MemoryStore } from "../../../support/memory-store.ts";
import { FakeClock, settle } from "../support.ts";

const volume = { driver: "csi.test", handle: "h" };
const name = uniqueVolumeName("csi.test", "h");
const node = (attached: string[], inUse: string[]): Node => ({
  metadata: { name: "n1" },
  status: { volumesAttached: attached.map((of) => ({ name: of, devicePath: "" })), volumesInUse: inUse },
});
const attachment = (status: VolumeAttachment["status"], deletionTimestamp?: string): VolumeAttachment => ({
  metadata: { name: "csi-1", ...(deletionTimestamp === undefined ? {} : { deletionTimestamp }) },
  spec: { attacher: "csi.test", nodeName: "n1", source: {} },
  ...(status === undefined ? {} : { status }),
});

test("attachObstacle: attached and reported in use, or what is missing", () => {
  expect(attachObstacle(undefined, name, "n1")).toContain("not attached yet according to the status of node n1");
  expect(attachObstacle(node([], [name]), name, "n1")).toContain("not attached yet");
  expect(attachObstacle(node([name], ["other"]), name, "n1")).toContain("VolumesInUse");
  expect(attachObstacle(node([name], [name]), name, "n1")).toBeUndefined();
});

describe("judgeAttachment", () => {
  const obstacle = "waiting for it";
  const refusal = (errorCode?: number) =>
    attachment({
      attached: false,
      attachError: { message: "no slot", ...(errorCode === undefined ? {} : { errorCode }) },
    });
  const cases: {
    name: string;
    of: VolumeAttachment | AgentError;
    given?: { obstacle?: string; waitedMs?: number; hasLimit?: boolean };
    want: Partial<AttachVerdict & { meaning: string | undefined }>;
  }[] = [
    { name: "attached", of: attachment({ attached: true }), want: { kind: "attached", metadata: {} } },
    {
      name: "attached, with something to say to those who mount it",
      of: attachment({ attached: true, attachmentMetadata: { a: "b" } }),
      want: { kind: "attached", metadata: { a: "b" } },
    },
    {
      name: "attached, and on its way out",
      of: attachment({ attached: true }, "2026-01-01T00:00:00Z"),
      want: { step: "WaitForAttach", why: "volume attachment csi-1 of volume h is being deleted" },
    },
    {
      name: "not attached, though the Node has it",
      of: attachment(undefined),
      want: {
        step: "WaitForAttach",
        why: "volume h is not attached by volume attachment csi-1 yet",
        meaning: undefined,
      },
    },
    {
      name: "nothing is wrong yet",
      of: attachment({ attached: false }),
      given: { obstacle },
      want: { step: "VerifyControllerAttachedVolume", why: obstacle, meaning: "pending" },
    },
    {
      name: "the attach/detach controller has not even begun",
      of: new AgentError("NotFound", "not found"),
      given: { obstacle },
      want: { why: obstacle, meaning: "pending" },
    },
    {
      name: "it cannot be read why",
      of: new AgentError("Forbidden", "not yours"),
      given: { obstacle },
      want: { why: `${obstacle}: not yours`, code: "Unavailable", meaning: "pending" },
    },
    {
      name: "that takes too long",
      of: attachment({ attached: false }),
      given: { obstacle, waitedMs: attachPendingMs },
      want: { why: obstacle, meaning: undefined },
    },
    {
      name: "the attacher refuses",
      of: refusal(),
      given: { obstacle },
      want: { why: `${obstacle}: no slot`, meaning: undefined },
    },
    {
      name: "the node is full, but another pod may just be going",
      of: refusal(8),
      given: { obstacle, hasLimit: true },
      want: { why: `${obstacle}: no slot`, meaning: undefined },
    },
    {
      name: "the node is full",
      of: refusal(8),
      given: { obstacle, waitedMs: attachPendingMs, hasLimit: true },
      want: { why: `${obstacle}: no slot`, meaning: "over the limit" },
    },
    {
      name: "the node is full, of a driver that does not say anew how much it takes",
      of: refusal(8),
      given: { obstacle, waitedMs: attachPendingMs },
      want: { meaning: undefined },
    },
    {
      name: "refused for something else",
      of: refusal(13),
      given: { obstacle, waitedMs: attachPendingMs, hasLimit: true },
      want: { meaning: undefined },
    },
  ];
  test.each(cases)("$name", ({ of, given, want }) => {
    const observed = { handle: "h", obstacle: undefined, waitedMs: 0, hasLimit: false, ...given, attachment: of };
    expect(judgeAttachment(observed)).toMatchObject(want);
  });
});

describe("waitForAttach", () => {
  const start = (get: ApiClient["get"], refreshLimit?: () => Promise<void>) => {
    const ownNode = new MemoryStore<Node>().markSynced();
    const clock = new FakeClock();
    const stop = new AbortController();
    const client = { get } as unknown as ApiClient;
    const awaited = { ...volume, sinceMs: clock.monotonic(), refreshLimit };
    const result = waitForAttach(awaited, { client, ownNode, nodeName: "n1", clock }, stop.signal);
    result.catch(() => {});
    return { ownNode, clock, stop, result };
  };
  const answer: ApiClient["get"] = async (_, key) => {
    expect(key).toEqual({ name: attachmentName("h", "csi.test", "n1") });
    return (await Promise.resolve(attachment({ attached: true, attachmentMetadata: { a: "b" } }))) as never;
  };

  test("is woken by the Node, and leaves nothing behind", async () => {
    const { ownNode, clock, result } = start(answer);
    await settle();
    ownNode.put(node([name], []));
    await settle();
    ownNode.put(node([name], [name]));
    expect(await result).toEqual({ a: "b" });
    expect(clock.pendingTimers).toBe(0);
  });

  test("says after a while what it waits for", async () => {
    const { clock, result } = start(answer);
    await clock.advance(attachPatienceMs);
    await expect(result).rejects.toMatchObject({
      step: "VerifyControllerAttachedVolume",
      code: "Unavailable",
      message: expect.stringContaining("waiting for the attach/detach controller"),
      meaning: "pending",
    });
  });

  test("says why the attacher refuses, though the Node never lists the volume", async () => {
    const refusal = attachment({ attached: false, attachError: { message: "no slot", errorCode: 8 } });
    const { clock, result } = start(async () => (await Promise.resolve(refusal)) as never);
    await clock.advance(attachPatienceMs);
    await expect(result).rejects.toMatchObject({ message: expect.stringMatching(/not attached yet .*: no slot$/) });
  });

  test("gives up after the limit was written anew, if the node has no room", async () => {
    const refusal = attachment({ attached: false, attachError: { message: "no slot", errorCode: 8 } });
    const refreshing = Promise.withResolvers<void>();
    let refreshes = 0;
    const refreshLimit = async () => {
      refreshes += 1;
      await refreshing.promise;
    };
    const { clock, result } = start(async () => (await Promise.resolve(refusal)) as never, refreshLimit);
    clock.nowMs += attachPendingMs;
    await clock.advance(attachPatienceMs);
    let isEnded = false;
    void result.catch(() => {}).then(() => (isEnded = true));
    await settle();
    expect([refreshes, isEnded]).toEqual([1, false]);
    refreshing.resolve();
    await expect(result).rejects.toMatchObject({ meaning: "over the limit" });
  });

  test("ends with its pod", async () => {
    const { stop, clock, result } = start(answer);
    stop.abort();
    await expect(result).rejects.toThrow("aborted");
    expect(clock.pendingTimers).toBe(0);
  });

  test("an attachment that cannot be read", async () => {
    const { ownNode, result } = start(async () => await Promise.reject(new AgentError("NotFound", "not found")));
    ownNode.put(node([name], [name]));
    await expect(result).rejects.toMatchObject({
      step: "WaitForAttach",
      code: "NotFound",
      message: expect.stringMatching(/^volume h has GET error for volume attachment csi-[0-9a-f]{64}: not found$/),
    });
  });
});
