import { expect, test } from "vitest";
import { exec } from "../../../agent/lib/exec.ts";
import {
  decideSaving,
  lookMs,
  type Quiet,
  quietLooksMin,
  saveMemoryWhenQuiet,
  savingFlags,
} from "../../../agent/lib/memory.ts";
import { FakeClock } from "../kube/fake-clock.ts";

const cases: { name: string; before: Quiet; share: number; want: Quiet }[] = [
  {
    name: "one quiet second is none yet",
    before: { quietLooks: 0, isSaving: false },
    share: 0.01,
    want: { quietLooks: 1, isSaving: false },
  },
  {
    name: "some in a row are",
    before: { quietLooks: quietLooksMin - 1, isSaving: false },
    share: 0.09,
    want: { quietLooks: quietLooksMin, isSaving: true },
  },
  {
    name: "work in between starts the count anew",
    before: { quietLooks: quietLooksMin - 1, isSaving: false },
    share: 0.2,
    want: { quietLooks: 0, isSaving: false },
  },
  {
    name: "a little work does not end it",
    before: { quietLooks: quietLooksMin, isSaving: true },
    share: 0.2,
    want: { quietLooks: 0, isSaving: true },
  },
  {
    name: "a burst does",
    before: { quietLooks: quietLooksMin, isSaving: true },
    share: 0.3,
    want: { quietLooks: 0, isSaving: false },
  },
];
for (const { name, before, share, want } of cases) {
  test(`decideSaving: ${name}`, () => expect(decideSaving(before, share)).toEqual(want));
}

test("memory is given back after a burst, and no burst is slowed down by it", async () => {
  const clock = new FakeClock();
  const stop = new AbortController();
  const switched: string[] = [];
  let share = 0.9;
  let busy = { active: 0, idle: 0 };
  const busySince = () => {
    busy = { active: busy.active + lookMs * share, idle: busy.idle + lookMs * (1 - share) };
    return busy;
  };
  const setSaving = (isSaving: boolean) => switched.push(isSaving ? "on" : "off");
  const saving = saveMemoryWhenQuiet({ clock, setSaving, busySince }, stop.signal);
  await clock.advance(20 * lookMs);
  expect(switched).toEqual([]);
  share = 0.02;
  await clock.advance(quietLooksMin * lookMs);
  expect(switched).toEqual(["on"]);
  await clock.advance(20 * lookMs);
  share = 0.9;
  await clock.advance(lookMs);
  expect(switched).toEqual(["on", "off"]);
  stop.abort();
  await saving;
});

test("this Node.js knows the flag that is switched", async () => {
  for (const flag of savingFlags) {
    const { code } = await exec(process.execPath, [flag, "--eval", ""], { timeoutMs: 10_000 });
    expect(code, flag).toBe(0); // 9 for one that it does not know
  }
});
