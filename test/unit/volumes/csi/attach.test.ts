import { describe, expect, test } from "vitest";
import type { ApiClient } from "../../../../agent/kube/port.ts";
import type { Node, VolumeAttachment } from "../../../../agent/kube/types.ts";
import { AgentError } from "../../../../agent/lib/errors.ts";
import {
  attachObstacle,
  attachPatienceMs,
  readAttachment,
  waitForAttach,
} from "../../../../agent/volumes/csi/attach.ts";
import { AttachLimitError } from "../../../../agent/volumes/failures.ts";
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

test("readAttachment: what the attacher says, or why there is nothing", () => {
  expect(readAttachment(attachment({ attached: true, attachmentMetadata: { a: "b" } }), "h")).toEqual({ a: "b" });
  expect(readAttachment(attachment({ attached: true }), "h")).toEqual({});
  const fail = (of: VolumeAttachment) => () => readAttachment(of, "h");
  expect(fail(attachment({ attached: false, attachError: { message: "no slot" } }))).toThrow(/^no slot$/);
  const full = attachment({ attached: false, attachError: { message: "no slot", errorCode: 8 } });
  expect(fail(full)).toThrow(AttachLimitError);
  const otherwise = attachment({ attached: false, attachError: { message: "no slot", errorCode: 13 } });
  expect(fail(otherwise)).not.toThrow(AttachLimitError);
  expect(fail(attachment(undefined))).toThrow("volume h is not attached by volume attachment csi-1 yet");
  expect(fail(attachment({ attached: true }, "2026-01-01T00:00:00Z"))).toThrow("is being deleted");
});

describe("waitForAttach", () => {
  const start = (get: ApiClient["get"]) => {
    const ownNode = new MemoryStore<Node>().markSynced();
    const clock = new FakeClock();
    const stop = new AbortController();
    const client = { get } as unknown as ApiClient;
    const result = waitForAttach(volume, { client, ownNode, nodeName: "n1", clock }, stop.signal);
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
    });
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
