-- Append audit records, as many as there is room for, and drop those that are archived or on the archive's disk.
--
-- KEYS[1] audit:{s}   KEYS[2] archive:{s}:audit
-- ARGV[1] records that may wait for the archive   then the records
-- Returns how many were appended: the first so many.
--
-- Atomic, so that the bound holds for all gateways together and nothing unarchived is ever trimmed. Not allowed above
-- the memory limit: an audit of reads must not take the room that the log needs.
local safe = redis.call('HGET', KEYS[2], 'spilled') or redis.call('HGET', KEYS[2], 'committed')
if safe then
  redis.call('XTRIM', KEYS[1], 'MINID', safe)
end
local room = math.min(tonumber(ARGV[1]) - redis.call('XLEN', KEYS[1]), #ARGV - 1)
for i = 2, room + 1 do
  redis.call('XADD', KEYS[1], '*', 'd', ARGV[i])
end
return math.max(0, room)
