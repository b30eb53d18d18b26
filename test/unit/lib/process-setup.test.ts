import { afterEach, beforeEach, expect, test } from "vitest";
import { setUpProcess } from "../../../agent/lib/process-setup.ts";

let before: string | undefined;

beforeEach(() => {
  before = process.env["UV_THREADPOOL_SIZE"];
});

afterEach(() => {
  if (before === undefined) delete process.env["UV_THREADPOOL_SIZE"];
  else process.env["UV_THREADPOOL_SIZE"] = before;
});

test("file operations get more threads than Node's four", async () => {
  delete process.env["UV_THREADPOOL_SIZE"];
  await setUpProcess();
  expect(process.env["UV_THREADPOOL_SIZE"]).toBe("16");
});

test("what the operator set stays", async () => {
  process.env["UV_THREADPOOL_SIZE"] = "4";
  await setUpProcess();
  expect(process.env["UV_THREADPOOL_SIZE"]).toBe("4");
});
