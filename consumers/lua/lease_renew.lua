#!lua flags=allow-oom
-- Prolong a lease (ARGV[3] > 0) or give it up (ARGV[3] = 0), if it is still ours.
--
-- KEYS[1] lease:{s}:<job>
-- ARGV[1] owner   ARGV[2] token   ARGV[3] time to live, ms
-- Returns 1 when it was ours, else 0.
--
-- Atomic: between a separate check and change the lease could expire and be somebody else's.
if redis.call('GET', KEYS[1]) ~= ARGV[1] .. ' ' .. ARGV[2] then
  return 0
end
if tonumber(ARGV[3]) > 0 then
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
else
  redis.call('DEL', KEYS[1])
end
return 1
