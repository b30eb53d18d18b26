import { expect, test } from "vitest";
import { addCounts, type Counts, countsOfReport, failuresOfReport, summaryLine } from "../../../.ci/counts.ts";

const report = (...files: { status: string; tests: string[] }[]) =>
  JSON.stringify({
    testResults: files.map(({ status, tests }) => ({ status, assertionResults: tests.map((t) => ({ status: t })) })),
  });

const cases: { name: string; report: string | undefined; exitCode: number; want: Counts }[] = [
  {
    name: "tests of all files",
    report: report(
      { status: "passed", tests: ["passed", "pending"] },
      { status: "failed", tests: ["failed", "passed"] },
    ),
    exitCode: 1,
    want: { passed: 2, failed: 1, skipped: 1 },
  },
  {
    name: "a file that could not be loaded is one failure",
    report: report({ status: "failed", tests: [] }, { status: "passed", tests: ["passed"] }),
    exitCode: 1,
    want: { passed: 1, failed: 1, skipped: 0 },
  },
  {
    name: "a hook that failed after the tests passed is one failure",
    report: report({ status: "failed", tests: ["passed"] }),
    exitCode: 1,
    want: { passed: 1, failed: 1, skipped: 0 },
  },
  {
    name: "an unhandled rejection is one failure",
    report: report({ status: "passed", tests: ["passed"] }),
    exitCode: 1,
    want: { passed: 1, failed: 1, skipped: 0 },
  },
  {
    name: "a run that died is one failure",
    report: undefined,
    exitCode: 128,
    want: { passed: 0, failed: 1, skipped: 0 },
  },
  { name: "so is a torn report", report: `{"testRes`, exitCode: 1, want: { passed: 0, failed: 1, skipped: 0 } },
];

for (const { name, report: text, exitCode, want } of cases) {
  test(`counts: ${name}`, () => expect(countsOfReport(text, exitCode)).toEqual(want));
}

test("the last line of a run", () => {
  const none = { passed: 0, failed: 0, skipped: 0 };
  expect(summaryLine(addCounts(none, { passed: 3, failed: 1, skipped: 0 }))).toBe("3 passed, 1 failed");
  expect(summaryLine({ passed: 3, failed: 0, skipped: 2 })).toBe("3 passed, 0 failed, 2 skipped");
});

test("each failure is named, with the first lines of its message", () => {
  const text = JSON.stringify({
    testResults: [
      {
        name: "/somewhere/test/unit/a.test.ts",
        status: "failed",
        assertionResults: [
          { fullName: "a thing works", status: "passed" },
          {
            fullName: "a thing fails",
            status: "failed",
            failureMessages: ["Error: no\n\n  at 1\n  at 2\n  at 3\n  at 4"],
          },
        ],
      },
      { name: "/somewhere/test/e2e/b.test.ts", status: "failed", message: "cannot be loaded", assertionResults: [] },
    ],
  });
  expect(failuresOfReport(text)).toEqual([
    "test/unit/a.test.ts: a thing fails\n    Error: no\n    at 1\n    at 2\n    at 3",
    "test/e2e/b.test.ts\n    cannot be loaded",
  ]);
  expect(failuresOfReport(undefined)).toEqual([]);
});
